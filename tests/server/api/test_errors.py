"""Every refusal has the one shape, names the field, and repeats nothing of the input."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from server_fakes import Call, FakeRunner, png, running

from server.api.app import create_app
from server.metrics import Metrics
from server.service import Service
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

PICTURE = base64.b64encode(png()).decode()
SECRET = "xyzzy-secret"


def body(**fields: Any) -> dict[str, Any]:
    return {"image": {"base64": PICTURE}, **fields}


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for leak in ("0x", "/root", "Traceback", SECRET):
        assert leak not in answer.text
    assert answer.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("sent", "status", "param", "code"),
    [
        ({}, 422, "image", "missing_field"),
        ({"image": 3}, 422, "image", "wrong_type"),
        ({"image": {}}, 400, "image", "invalid_value"),
        ({"image": {"base64": "", "url": "data:,"}}, 400, "image", "invalid_value"),
        ({"image": {"base64": SECRET * 9}}, 400, "image.base64", "invalid_base64"),
        ({"image": {"base64": "AAA"}}, 400, "image.base64", "invalid_base64"),
        ({"image": {"base64": ""}}, 400, "image", "image_empty"),
        ({"image": {"base64": "aGVsbG8="}}, 415, "image", "unsupported_image"),
        ({"image": {"base64": PICTURE[:-40]}}, 400, "image", "image_broken"),
        ({"image": {"url": "http://127.0.0.1/a.png"}}, 400, "image.url", "url_not_allowed"),
        ({"image": {"url": "file:///etc/passwd"}}, 400, "image.url", "url_not_allowed"),
        ({"image": {"url": "data:image/png,abc"}}, 400, "image.url", "invalid_value"),
        (body(prompt=3), 422, "prompt", "wrong_type"),
        (body(prompt="a" * 5000), 400, "prompt", "invalid_value"),
        (body(stream="yes"), 422, "stream", "wrong_type"),
        (body(priority=2**40), 400, "priority", "invalid_value"),
        (body(timeout_seconds=0), 400, "timeout_seconds", "invalid_value"),
        (body(timeout_seconds=1e9), 400, "timeout_seconds", "invalid_value"),
        (body(**{SECRET: 1}), 422, SECRET, "unknown_field"),
        (body(**{f"<{SECRET}>": 1}), 422, "?", "unknown_field"),
        (body(sampling={"steps": "8"}), 422, "sampling.steps", "wrong_type"),
        (body(sampling={"steps": 8.5}), 422, "sampling.steps", "wrong_type"),
        (body(sampling={"speed": 8}), 422, "sampling.speed", "unknown_field"),
        (body(sampling={"preset": SECRET}), 400, "sampling.preset", "invalid_value"),
        (body(sampling={"steps": 0}), 400, "sampling.steps", "invalid_value"),
        (body(sampling={"steps": 10**30}), 400, "sampling.steps", "invalid_value"),
        (body(sampling={"steps": 2000}), 400, "sampling.steps", "invalid_value"),
        (body(sampling={"canvas_length": 2000}), 400, "sampling.canvas_length", "invalid_value"),
        (
            body(sampling={"reveal_threshold": 1.5}),
            400,
            "sampling.reveal_threshold",
            "invalid_value",
        ),
        (body(sampling={"end_threshold": 2}), 400, "sampling.end_threshold", "invalid_value"),
        (body(sampling={"edit_threshold": -1}), 400, "sampling.edit_threshold", "invalid_value"),
        (
            body(sampling={"extra_refine_steps": -1}),
            400,
            "sampling.extra_refine_steps",
            "invalid_value",
        ),
        (
            # 8 tokens in blocks of 1: a few steps a block would be many.
            body(sampling={"extra_refine_steps": 200, "block_length": 1}),
            400,
            "sampling.extra_refine_steps",
            "invalid_value",
        ),
        (body(sampling={"block_length": 3}), 400, "sampling.block_length", "invalid_value"),
        (body(sampling={"temperature": -1}), 400, "sampling.temperature", "invalid_value"),
        (body(sampling={"seed": -(2**63) - 1}), 400, "sampling.seed", "invalid_value"),
        (
            body(sampling={"steps": 4, "tokens_per_step": 2}),
            400,
            "sampling.steps",
            "invalid_value",
        ),
    ],
)
async def test_a_bad_json_body_is_named(
    sent: dict[str, Any], status: int, param: str, code: str
) -> None:
    async with running() as server:
        answer = await server.client.post("/caption", json=sent)
        if param == SECRET:
            assert answer.json()["error"]["param"] == SECRET
            return
        error = error_of(answer, status)
        assert (error["param"], error["code"]) == (param, code)
        assert error["type"] == "invalid_request_error"
        assert server.service.active == 0


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"image": {"base64": "\xff"}}',
        b"[" * 100_000,
        b'{"image": {"base64": ""}, "timeout_seconds": Infinity}',
        b'{"image": {"base64": ""}, "sampling": {"temperature": NaN}}',
        b'{"image": {"base64": ""}, "sampling": {"steps": ' + b"9" * 10_000 + b"}}",
        b'{"image": {"base64": ""}, "prompt": "\\ud800"}',
        b"null",
        b"[]",
        b'"text"',
    ],
)
async def test_a_body_that_is_no_proper_json_is_refused(sent: bytes) -> None:
    async with running() as server:
        answer = await server.client.post("/caption", content=sent)
        assert answer.status_code in (400, 422)
        error_of(answer, answer.status_code)


FILE = ("image", ("a", png()))


@pytest.mark.parametrize(
    ("parts", "status", "param"),
    [
        ([("prompt", (None, "x"))], 422, "image"),
        ([("image", (None, "text"))], 422, "image"),
        ([("image", ("a", b""))], 400, "image"),
        ([("image", ("a.psd", b"8BPS" + b"\0" * 40))], 415, "image"),
        ([FILE, ("sampling", (None, "{"))], 400, "sampling"),
        ([FILE, ("sampling", (None, '{"steps": "a"}'))], 422, "sampling.steps"),
        ([FILE, ("sampling", (None, '{"steps": 0}'))], 400, "sampling.steps"),
        ([FILE, ("stream", (None, "perhaps"))], 422, "stream"),
        ([FILE, ("timeout_seconds", (None, "inf"))], 400, "timeout_seconds"),
        ([FILE, ("colour", (None, "red"))], 422, "colour"),
        ([FILE, ("prompt", (None, "x")), ("prompt", (None, "y"))], 400, None),
        ([FILE, FILE], 400, None),
        ([("other", ("a", png()))], 422, "image"),
        ([FILE, ("draft", (None, " "))], 400, "draft"),
    ],
)
async def test_a_bad_form_is_named(parts: Any, status: int, param: str | None) -> None:
    async with running() as server:
        path = "/refine" if "draft" in dict(parts) else "/caption"
        answer = await server.client.post(path, files=parts)
        assert error_of(answer, status)["param"] == param


@pytest.mark.parametrize(
    "sent",
    [
        (b"", "multipart/form-data"),
        (b"nonsense", "multipart/form-data; boundary=x"),
        (
            b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--",
            "multipart/form-data; boundary=x",
        ),
    ],
)
async def test_a_broken_form_is_400(sent: tuple[bytes, str]) -> None:
    async with running() as server:
        content, media_type = sent
        answer = await server.client.post(
            "/caption", content=content, headers={"content-type": media_type}
        )
        assert answer.status_code in (400, 422)
        error_of(answer, answer.status_code)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([FILE, ("sampling", ("s.json", b"{}"))], "Too many files"),
        ([(f"f{number}", (None, "x")) for number in range(30)], "Too many fields"),
        ([FILE, ("prompt", (None, "x" * 2_000_000))], "1024KB"),
    ],
)
async def test_a_form_that_is_refused_hears_why(parts: Any, reason: str) -> None:
    async with running() as server:
        error = error_of(await server.client.post("/caption", files=parts), 400)
        assert error["code"] == "invalid_request"
        assert error["message"].startswith("the form cannot be read: ")
        assert reason in error["message"]


@pytest.mark.parametrize("media_type", ["image/png", "application/x-www-form-urlencoded", ""])
async def test_a_picture_without_a_form_hears_how_to_send_it(media_type: str) -> None:
    async with running() as server:
        answer = await server.client.post(
            "/caption", content=png(), headers={"content-type": media_type}
        )
        error = error_of(answer, 400)
        assert error["code"] == "invalid_json"
        assert error["message"] == "the body is neither JSON nor a multipart form"


async def test_a_prompt_of_too_many_tokens_is_named() -> None:
    async with running(max_prompt_tokens=3) as server:
        answer = await server.client.post("/caption", json=body(prompt="a b c d"))
        error = error_of(answer, 400)
        assert error["message"] == "prompt has 4 tokens, the limit is 3"
        assert error["param"] == "prompt"
        assert server.service.active == 0
        answer = await server.client.post("/caption", json=body(prompt="a b c"))
        assert answer.status_code == 200


async def test_refine_needs_a_draft() -> None:
    async with running() as server:
        assert error_of(await server.client.post("/refine", json=body()), 422)["param"] == "draft"
        for draft in ("", " \n"):
            answer = await server.client.post("/refine", json=body(draft=draft))
            assert error_of(answer, 400)["param"] == "draft"


async def test_unknown_routes_and_methods_have_the_shape() -> None:
    async with running() as server:
        for path in ("/nothing", "/caption/", "/caption/../../etc"):
            assert error_of(await server.client.get(path), 404)["code"] == "not_found"
        answer = await server.client.get("/caption")
        assert error_of(answer, 405)["code"] == "method_not_allowed"
        assert answer.headers["allow"] == "POST"


async def test_a_picture_above_a_limit_is_413() -> None:
    async with running(max_image_pixels=20) as server:
        error = error_of(await server.client.post("/caption", json=body()), 413)
        assert error["code"] == "image_too_large"


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_above_the_limit_is_413(declared: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"x" * 1000

    async with running(max_body_bytes=30_000, max_image_bytes=20_000) as server:
        content: Any = b"x" * 40_000 if declared else chunks()
        answer = await server.client.post("/caption", content=content)
        assert error_of(answer, 413)["code"] == "body_too_large"
        assert answer.headers["connection"] == "close"
        for _ in range(3):
            # What a refused body held is given back: bodies at the limit still fit.
            answer = await server.client.post("/caption", content=b"x" * 29_999)
            assert error_of(answer, 400)["code"] == "invalid_json"


async def test_bodies_above_the_total_are_503_until_others_end() -> None:
    large = json.dumps(body(prompt=" " * 1000 + "x")).encode()
    async with running(
        max_image_bytes=1024, max_body_bytes=1500, max_buffered_bytes=2000
    ) as server:
        server.runner.free_running = False
        first = Call(server.app, "/caption", large, {})
        await server.stepping()
        answer = await server.client.post("/caption", content=large)
        error_of(answer, 503)
        assert answer.headers["retry-after"] == "1"
        server.runner.steps_allowed.release(10)
        await first.task
        assert first.status == 200
        assert (await server.client.post("/caption", content=large)).status_code == 200


async def test_a_body_that_never_ends_is_408() -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    never = asyncio.Event()
    async with running(body_timeout=0.05) as server:
        answer = await server.client.post("/caption", content=stalled())
        assert error_of(answer, 408)["code"] == "body_timeout"


@pytest.mark.parametrize("prompt", ["boom prepare", "boom start", "boom step"])
async def test_a_failing_request_is_500_without_the_reason(prompt: str) -> None:
    async with running() as server:
        error = error_of(await server.client.post("/caption", json=body(prompt=prompt)), 500)
        assert error["type"] == "server_error"
        assert (await server.client.post("/caption", json=body())).status_code == 200
        assert server.service.active == 0


async def test_a_failure_in_a_stream_is_an_error_event() -> None:
    async with running() as server:
        sent = json.dumps(body(prompt="boom step", stream=True)).encode()
        call = Call(server.app, "/caption", sent, {})
        event = await call.event()
        assert call.status == 200
        assert event is not None
        name, data = event
        assert name == "error"
        assert data["error"]["code"] == "internal_error"
        assert await call.event() is None
        await call.leave()
        assert server.service.active == 0


async def test_an_error_before_a_stream_is_an_ordinary_answer() -> None:
    async with running() as server:
        answer = await server.client.post(
            "/caption", json={"image": {"base64": "aGVsbG8="}, "stream": True}
        )
        error_of(answer, 415)


async def test_a_bug_in_a_route_is_500_in_the_shape() -> None:
    settings = Settings.read({"model": "fake"})
    service = Service(FakeRunner, settings.engine(), Metrics(), "fake")
    app = create_app(service, settings)

    @app.get("/bug")
    async def bug() -> None:
        raise RuntimeError(SECRET)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert error_of(await client.get("/bug"), 500)["code"] == "internal_error"


async def test_request_ids_are_kept_or_made() -> None:
    async with running() as server:
        answer = await server.client.get("/version", headers={"x-request-id": "abc-1.2:3"})
        assert answer.headers["x-request-id"] == "abc-1.2:3"
        for given in ("a b", "x" * 200, "<script>", ""):
            answer = await server.client.get("/version", headers={"x-request-id": given})
            assert answer.headers["x-request-id"] != given
            assert len(answer.headers["x-request-id"]) == 32

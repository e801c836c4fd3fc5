"""What is logged of a request: an id, a route and counts, and nothing of its content."""

from __future__ import annotations

import base64
import io
import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from server_fakes import FakeRunner, png, running

from server.logs import JsonFormatter, configure

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

SECRET = "xyzzy-secret"
PICTURE = base64.b64encode(png()).decode()
BODY = {"image": {"base64": PICTURE}, "prompt": f"{SECRET} words"}


@contextmanager
def log_lines() -> Iterator[list[dict[str, Any]]]:
    """Every line that is logged inside, as JSON; filled at the end."""
    stream, root = io.StringIO(), logging.getLogger()
    handler, level, lines = logging.StreamHandler(stream), root.level, list[dict[str, Any]]()
    handler.setFormatter(JsonFormatter())
    # The client of these tests tells its URLs, and is not the server.
    handler.addFilter(lambda record: record.name.startswith("server"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        lines += map(json.loads, stream.getvalue().splitlines())


def requests_in(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["logger"] == "server.access"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caption_leaves_one_line_of_counts(stream: bool) -> None:
    with log_lines() as lines:
        async with running() as server:
            headers = {"x-request-id": "mine-1"}
            body = BODY | {"stream": stream}
            assert (await server.client.post("/caption", json=body, headers=headers)).is_success
    (line,) = requests_in(lines)
    assert set(line.pop("timing")) == {"decode", "vision", "queue", "generate", "total"}
    assert 0 <= line.pop("duration") < 60
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "server.access",
        "message": "request",
        "request_id": "mine-1",
        "method": "POST",
        "route": "/caption",
        "status": 200,
        "tokens": 2,
        "steps": 2,
        "revisions": 1,
    }


async def test_a_chat_is_logged_alike() -> None:
    url = f"data:image/png;base64,{PICTURE}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": SECRET}]
    for stream in (False, True):
        body = {"messages": [{"role": "user", "content": content}], "stream": stream}
        with log_lines() as lines:
            async with running() as server:
                assert (await server.client.post("/v1/chat/completions", json=body)).is_success
        (line,) = requests_in(lines)
        assert (line["route"], line["status"]) == ("/v1/chat/completions", 200)
        assert (line["tokens"], line["steps"]) == (1, 2)


async def test_no_line_holds_a_picture_a_prompt_a_caption_a_key_or_a_path() -> None:
    with log_lines() as lines:
        async with running(api_keys=[SECRET + "-key"]) as server:
            key = {"authorization": f"Bearer {SECRET}-key"}
            for body in (BODY, BODY | {"stream": True}, BODY | {SECRET: 1}, BODY | {"image": 3}):
                await server.client.post("/caption", json=body, headers=key)
            await server.client.post("/refine", json=BODY | {"draft": SECRET}, headers=key)
            await server.client.get(f"/{SECRET}?a={SECRET}", headers=key)
            await server.client.get("/version", headers={"authorization": f"Bearer {SECRET}"})
    text = json.dumps(lines)
    assert len(requests_in(lines)) == 7
    assert SECRET not in text
    assert PICTURE[:20] not in text


async def test_an_unknown_path_cannot_write_lines_of_its_own() -> None:
    with log_lines() as lines:
        async with running() as server:
            await server.client.get("/a%0d%0a2026-01-01 INFO forged")
    (line,) = requests_in(lines)
    assert "route" not in line
    assert "forged" not in json.dumps(lines)


async def test_an_error_is_logged_by_its_code() -> None:
    with log_lines() as lines:
        async with running() as server:
            await server.client.post("/caption", json={"image": {"base64": "aGVsbG8="}})
            await server.client.post("/caption", json=BODY | {"prompt": "boom step"})
            body = BODY | {"prompt": "boom step", "stream": True}
            await server.client.post("/caption", json=body)
            await server.client.post("/caption", content=b" " * 40_000_000)
    kinds = [(line["status"], line.get("error")) for line in requests_in(lines)]
    assert kinds == [
        (415, "unsupported_image"),
        (500, "internal_error"),
        (200, "internal_error"),
        (413, "body_too_large"),
    ]
    failures = [line for line in lines if "exception" in line]
    assert failures
    assert all("Traceback" in line["exception"] for line in failures)


async def test_a_failing_decoder_logs_nothing_of_the_picture() -> None:
    class Talkative(FakeRunner):
        def prepare(self, image: Any, question: Any) -> Any:
            raise ValueError("cannot")

    with log_lines() as lines:
        async with running(Talkative()) as server:
            await server.client.post("/caption", json=BODY)
    assert SECRET not in json.dumps(lines)


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_process_logs_in_the_form_asked_for(
    form: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", logging.WARNING)
    configure("info", form)
    logging.getLogger("somewhere").info("hello %s", "you\nthere")
    text = capsys.readouterr().err
    if form == "json":
        assert json.loads(text)["message"] == "hello you\nthere"
    else:
        assert "INFO somewhere: hello you" in text

"""The Python client against a real server: answers, streams, errors, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image
from server_fakes import DEFAULT_CAPTION, FakeRunner, png
from server_wire import serving

from server.client import (
    AsyncClient,
    BadAnswer,
    Canvas,
    CaptionAnswer,
    Client,
    Run,
    ServerRefused,
    Step,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from server.client import Picture

STEP = {
    "step": 1,
    "steps": 2,
    "masked": 0,
    "text": "a",
    "changed": [{"position": 0, "id": 9, "text": " a", "confidence": 0.5, "kind": "reveal"}],
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as address:
        yield f"http://{address}"


def answering(text: str, status: int = 200, **headers: str) -> Client:
    """A client of a server that gives this answer to everything."""
    answer = httpx.Response(status, text=text, headers=headers)
    return Client("http://test", transport=httpx.MockTransport(lambda request: answer))


def test_neither_torch_nor_fastapi_is_imported() -> None:
    program = """
import sys
from server.client import AsyncClient, Client
heavy = {"torch", "fastapi", "starlette", "uvicorn", "transformers", "numpy", "PIL", "typer"}
print(sorted(heavy & sys.modules.keys()), Client.__module__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[] server.client.client\n"


@pytest.mark.parametrize("kind", ["bytes", "path", "text", "pillow"])
def test_a_picture_is_a_path_a_file_or_pillows(server: str, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    pictures: dict[str, Picture] = {
        "bytes": png(),
        "path": path,
        "text": str(path),
        "pillow": Image.open(BytesIO(png())),
    }
    with Client(server) as client:
        answer = client.caption(pictures[kind], return_tokens=True, sampling={"steps": 2})
    assert isinstance(answer, CaptionAnswer)
    assert answer.caption == DEFAULT_CAPTION
    assert (answer.steps, answer.caption_confidence) == (2, 0.5)
    assert [word.text for word in answer.words or []] == DEFAULT_CAPTION.split()


def test_a_draft_is_revised(server: str) -> None:
    with Client(server) as client:
        answer = client.refine(png(), "two green apples on grass", prompt=DEFAULT_CAPTION)
    assert (answer.caption, answer.revisions) == (DEFAULT_CAPTION, 1)


def test_steps_come_as_objects(server: str) -> None:
    with Client(server) as client:
        *steps, answer = client.stream(png(), sampling={"tokens_per_step": 2})
    assert isinstance(answer, CaptionAnswer)
    assert [step.step for step in steps if isinstance(step, Step)] == [1, 2, 3, 4]
    first = steps[0]
    assert isinstance(first, Step)
    assert first.changed[0].kind == "reveal"
    assert first.text.endswith("▒" * first.masked)


def test_leaving_a_stream_frees_the_place(server: str) -> None:
    runner = FakeRunner()
    with (
        serving(lambda: runner, max_batch=1, max_queue=0) as address,
        Client(f"http://{address}") as client,
    ):
        runner.free_running = False
        runner.steps_allowed.release()
        events = client.stream(png(), sampling={"tokens_per_step": 2})
        next(events)
        with pytest.raises(ServerRefused) as busy:
            client.caption(png())
        assert busy.value.code == "queue_full"
        assert busy.value.retry_after is not None
        events.close()  # type: ignore[attr-defined]
        runner.free_running = True
        runner.steps_allowed.release(100)
        answer, asked = None, 0
        while answer is None and asked < 200:
            asked += 1
            with suppress(ServerRefused):
                answer = client.caption(png())
    assert answer is not None
    assert answer.caption == DEFAULT_CAPTION


@pytest.mark.anyio
async def test_the_same_with_await(server: str) -> None:
    async with AsyncClient(server) as client:
        assert (await client.caption(png())).caption == DEFAULT_CAPTION
        refined = await client.refine(png(), "two green apples on grass")
        assert refined.revisions == 1
        events = [event async for event in client.stream(png(), sampling={"tokens_per_step": 2})]
        assert [type(event).__name__ for event in events] == ["Step"] * 4 + ["CaptionAnswer"]
        assert (await client.run(png())).answer.caption == DEFAULT_CAPTION
        assert await client.health() == "ready"
        assert (await client.version()).model == "fake"
        with pytest.raises(ServerRefused, match="status 415"):
            await client.caption(b"no picture")
        with pytest.raises(ServerRefused, match="status 415"):
            async for _ in client.stream(b"no picture"):
                pass


def test_what_the_server_says_of_itself(server: str) -> None:
    with Client(server) as client:
        version = client.version()
        assert client.health() == "ready"
    assert (version.model, version.status, version.canvas_length) == ("fake", "ready", 8)
    assert version.limits["max_image_bytes"] > 0
    assert version.model_extra is not None
    assert version.model_extra["kernels"] == "torch"


def test_a_server_that_is_not_ready() -> None:
    error = {"message": "the model is loading", "type": "t", "param": None, "code": "not_ready"}
    client = answering(json.dumps({"error": error}), 503, **{"retry-after": "5"})
    assert client.health() == "loading"
    with pytest.raises(ServerRefused, match="status 503: the model is loading") as caught:
        client.check_ready()
    assert caught.value.retry_after == 5
    with pytest.raises(ServerRefused, match="status 502 to /health/ready"):
        answering("<html>", 502).health()


def test_an_error_names_the_field(server: str) -> None:
    with Client(server) as client, pytest.raises(ServerRefused) as caught:
        client.caption(png(), sampling={"step": 3})
    error = caught.value
    assert (error.status, error.code, error.param) == (422, "unknown_field", "sampling.step")
    assert str(error) == f"the server answers with status 422: {error.message}"


def test_a_key_is_sent() -> None:
    with serving(api_keys="secret") as address:
        with Client(f"http://{address}") as client:
            with pytest.raises(ServerRefused, match="status 401"):
                client.version()
            assert client.health() == "ready"
        with Client(f"http://{address}", key=" secret\n") as client:
            assert client.version().model == "fake"
    with pytest.raises(ValueError, match="key"):
        Client(key="geheim\N{LATIN SMALL LETTER U WITH DIAERESIS}")
    with pytest.raises(ValueError, match="address"):
        Client("http://[::1")


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda client: client.caption(png()), "<html>"),
        (lambda client: client.version(), "[]"),
        (lambda client: list(client.stream(png())), "event: step\ndata: {}\n\n"),
        (lambda client: list(client.stream(png())), f"event: step\ndata: {json.dumps(STEP)}\n\n"),
    ],
)
def test_another_kind_of_server_is_told(ask: Callable[[Client], Any], text: str) -> None:
    with pytest.raises(BadAnswer):
        ask(answering(text))


def test_a_failure_within_a_stream_is_raised() -> None:
    failure = {"error": {"message": "the engine stopped", "code": "engine_down"}}
    text = (
        f": keep-alive\n\nevent: step\r\ndata: {json.dumps(STEP)}\r\n\r\n"
        f"event: error\ndata: {json.dumps(failure)}\n\n"
    )
    events = answering(text).stream(png())
    assert isinstance(next(iter(events)), Step)
    with pytest.raises(ServerRefused, match="an error: the engine stopped") as caught:
        next(iter(events))
    assert (caught.value.status, caught.value.code) == (0, "engine_down")


def test_a_run_is_shown_from_its_masks_to_its_caption(server: str) -> None:
    with Client(server) as client:
        run = client.run(png(), sampling={"tokens_per_step": 2})
    canvases = run.canvases()
    assert len(canvases) == 5
    assert all(cell.text is None for cell in canvases[0])
    assert "".join(cell.text or "" for cell in canvases[-1]).strip() == DEFAULT_CAPTION
    assert [cell.kind for cell in canvases[1]][:2] == ["reveal", "reveal"]
    revised = [cell for cells in canvases for cell in cells if cell.kind == "revise"]
    assert [(cell.was.strip(), cell.text) for cell in revised] == [("wrong", " two")]
    html = run._repr_html_()
    assert html.count("<p style=") == 5
    assert "data:image/png;base64," in html
    assert "<script" not in html


def test_a_run_begins_with_its_draft() -> None:
    token = {"position": 1, "id": 3, "text": " pear", "kind": "draft"}
    canvas = Canvas.model_validate({"tokens": [token]})
    run = Run.of(b"", [canvas, Step.model_validate(STEP), _answer("a pear")])
    assert [[cell.text for cell in cells] for cells in run.canvases()] == [
        [None, " pear"],
        [" a", " pear"],
    ]
    with pytest.raises(ValueError, match="no answer"):
        Run.of(b"", [canvas])


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '" onload="x', "</style>", "&lt;"])
def test_a_notebook_runs_nothing_of_a_caption(text: str) -> None:
    change = STEP["changed"][0] | {"text": text}  # type: ignore[index]
    revised = change | {"kind": "revise", "was": 9}
    steps = [
        Step.model_validate(STEP | {"changed": [change]}),
        Step.model_validate(STEP | {"changed": [revised]}),
    ]
    html = Run.of(png(), [*steps, _answer(text)])._repr_html_()
    assert text not in html.replace("</style><div", "").replace("&lt;span", "")
    assert html.count("<style>") == html.count("</style>") == 1
    assert not {"<script", 'onload="'} & set(html.split())


def _answer(caption: str) -> CaptionAnswer:
    return CaptionAnswer.model_validate(
        {
            "id": "cap-1",
            "model": "m",
            "caption": caption,
            "finish_reason": "stop",
            "usage": {"image_tokens": 1, "prompt_tokens": 2, "caption_tokens": 3},
            "steps": 2,
            "revisions": 1,
            "timing": {"decode": 0, "vision": 0, "queue": 0, "generate": 0, "total": 0},
        }
    )

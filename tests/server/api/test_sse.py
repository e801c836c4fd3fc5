"""Callers who ask for much and do not read it: what they hold is little, and not for ever."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import socket
import sys
import tracemalloc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from server_fakes import Call, FakeRunner, png, running

from server.api import sse
from server.api.process import listen
from server.engine.request import Prepared

if TYPE_CHECKING:
    from server_fakes import Running

pytestmark = pytest.mark.anyio

PICTURE = base64.b64encode(png()).decode()
URL = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
BODIES: dict[str, dict[str, Any]] = {
    "/caption": {"image": {"base64": PICTURE}},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": [URL]}]},
}


MEGABYTE = 2**20


def large(path: str) -> bytes:
    """A request for a stream, with 8 MB of blanks behind it."""
    return json.dumps(BODIES[path] | {"stream": True}).encode() + b" " * 8 * MEGABYTE


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_that_goes_on_holds_no_body(path: str) -> None:
    limits: dict[str, Any] = {"max_body_bytes": 9 * MEGABYTE, "max_buffered_bytes": 9 * MEGABYTE}
    async with running(max_image_bytes=MEGABYTE, **limits) as server:
        server.runner.free_running = False
        tracemalloc.start()
        call = Call(server.app, path, large(path), {})
        await server.stepping()
        server.runner.steps_allowed.release()
        assert await call.block() is not None
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 4 * MEGABYTE
        tracemalloc.stop()
        server.runner.free_running = True
        server.runner.steps_allowed.release(100)
        assert (await server.client.post(path, content=large(path))).status_code == 200
        await call.leave()


class Rows:
    """Stands for the embedded prompt."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


class RowsRunner(FakeRunner):
    """Prompts whose rows can be watched."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[weakref.ref[Rows]] = []

    def prepare(self, image: Any, question: Any) -> Prepared:
        rows = Rows("a pear")
        self.rows.append(weakref.ref(rows))
        return Prepared(rows, image_tokens=4, prompt_tokens=9)


async def reading(server: Running, seconds: float, reads: asyncio.Event) -> None:
    """A caller who takes the head of a stream and no more until `reads` is set."""
    sent = json.dumps(BODIES["/caption"] | {"stream": True, "timeout_seconds": seconds}).encode()
    messages = [{"type": "http.request", "body": sent, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await reads.wait()

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/caption",
        "query_string": b"",
        "headers": [],
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }
    await server.app(scope, receive, send)


async def test_a_caption_that_is_not_read_holds_no_rows() -> None:
    runner, reads = RowsRunner(), asyncio.Event()
    async with running(runner) as server:
        # Held until it has been seen: it would be over between two looks.
        runner.free_running = False
        task = asyncio.ensure_future(reading(server, 60, reads))
        await server.active(1)
        runner.free_running = True
        runner.steps_allowed.release(100)
        await server.active(0)
        # The engine's thread has let go when it waits for the next request.
        await server.client.post("/caption", json=BODIES["/caption"])
        gc.collect()
        assert runner.rows[0]() is None
        assert not task.done()
        reads.set()
        await task


async def test_who_does_not_read_is_cut_off_after_the_deadline(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sse, "LINGER_SECONDS", 0.1)
    async with running() as server, asyncio.timeout(20):
        await reading(server, 0.2, asyncio.Event())
        assert server.service.active == 0
        assert "a stream was not read to its end in time" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="an option of Linux")
def test_a_peer_that_takes_nothing_is_cut_off_by_the_system() -> None:
    with listen("127.0.0.1", 0) as listener:
        client = socket.create_connection(listener.getsockname())
        with client, listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000

"""A small HTTP/1.1 client on asyncio that costs less than the server it measures."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_IDLE_SECONDS: Final = 2.0
"""Servers close connections that are idle for longer than this, uvicorn after five."""
_ERRORS: Final = (OSError, EOFError, LookupError, ValueError, asyncio.LimitOverrunError)


class Lost(Exception):
    """A request that got no whole answer; the message is one of a few words that can be counted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes = b""
    """Empty for a stream of events."""
    events: list[tuple[float, str, str]] = field(default_factory=list)
    """Time on `time.perf_counter`, name and data of each server-sent event."""


class Wire:
    """Connections to one server, which requests take and give back."""

    def __init__(self, base_url: str, headers: Mapping[str, str], timeout: float) -> None:
        """`headers` go with every request; `timeout` is for a whole answer, in seconds.

        Raises:
            ValueError: not the URL of a server.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ValueError(f"{base_url!r} is no URL such as http://127.0.0.1:8000")
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._head = "".join(
            f"{name}: {value}\r\n" for name, value in {"host": parts.netloc, **headers}.items()
        )
        self._timeout = timeout
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self._host, self._port

    def post(self, path: str, body: bytes) -> bytes:
        """The bytes of a request with a JSON body, for `send`."""
        head = f"POST {self._prefix}{path} HTTP/1.1\r\n{self._head}"
        return (
            f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def send(self, request: bytes) -> Answer:
        """Send a request and wait for its whole answer.

        Raises:
            Lost: `connect`, `timeout`, or `broken` for an answer that was cut off or is not HTTP.
        """
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await self._connection()
                try:
                    writer.write(request)
                    # Not drained: a server may answer before it has read all, and then close.
                    answer = await _read_answer(reader)
                except _ERRORS:
                    writer.close()
                    raise Lost("broken") from None
                except BaseException:
                    writer.close()
                    raise
        except TimeoutError:
            raise Lost("timeout") from None
        if answer.headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append((time.monotonic(), reader, writer))
        return answer

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        writers = [writer for _, _, writer in self._idle]
        self._idle.clear()
        for writer in writers:
            writer.close()
        await asyncio.gather(*(one.wait_closed() for one in writers), return_exceptions=True)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.monotonic() - since < _IDLE_SECONDS and not reader.at_eof():
                return reader, writer
            writer.close()
        try:
            return await asyncio.open_connection(
                self._host, self._port, ssl=self._tls or None, limit=2**20
            )
        except OSError:
            raise Lost("connect") from None


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ", 2)[1])
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
    }
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return Answer(status, headers, await reader.readexactly(int(headers["content-length"])))
    if not headers.get("content-type", "").startswith("text/event-stream"):
        return Answer(status, headers, b"".join([chunk async for chunk in _chunks(reader)]))
    events, pending = [], b""
    async for chunk in _chunks(reader):
        now = time.perf_counter()
        *blocks, pending = (pending + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.partition(": ")[::2] for line in block.decode().splitlines())
            if "data" in fields:
                events.append((now, fields.get("event", "message"), fields["data"]))
    return Answer(status, headers, b"", events)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")

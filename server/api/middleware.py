"""ASGI middleware: request ids, records and a last catch; bodies read within limits."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers, MutableHeaders

from server.api.errors import error_response
from server.errors import BadBody, NotReady, ServeError
from server.logs import RequestRecord, log_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DISCARDED_BYTES: Final = 2**26
_DISCARD_SECONDS: Final = 5.0
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:\-]{1,128}")

logger = logging.getLogger(__name__)


class Envelope:
    """Gives every request an id and a record, and answers 500 for whatever was raised inside."""

    def __init__(self, app: ASGIApp, trace: Callable[[RequestRecord], None] | None = None) -> None:
        """`trace` is called with the record of each request when it has ended."""
        self._app = app
        self._trace = trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        record = RequestRecord(request_id, scope["method"], headers)
        scope.setdefault("state", {})["record"] = record

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception:
            logger.exception("request %s raised", request_id)
            if record.status:
                # The answer has begun: only cutting it off tells the client that it is broken.
                raise
            error = ServeError("something went wrong inside the server")
            record.error = error.code
            failure = error_response(error)
            await failure(scope, receive, send_named)
        finally:
            record.ended_at = time.time()
            record.route = getattr(scope.get("route"), "path", None)
            log_request(record)
            if self._trace is not None:
                self._trace(record)


class BodyTooLarge(BadBody):
    """A body above the limit."""

    reason = "body_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(413, "body_too_large", f"the body is above the limit of {limit} bytes")


@dataclass(slots=True)
class _Body:
    """What has been read of one body."""

    chunks: list[bytes] = field(default_factory=list)
    size: int = 0
    more: bool = True
    """Whether the client has more to send."""


class BodyLimits:
    """Reads each body whole before the app runs: within a size, a time, and a total for all."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_total: int, timeout: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_total = max_total
        self._timeout = timeout
        self._held = 0
        """Bytes of all bodies that are being read, or used for an answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers, body = Headers(scope=scope), _Body()

        async def send_answer(message: Message) -> None:
            # By now nobody has the body any more, and a stream may be read slowly.
            self._release(body)
            await send(message)

        try:
            try:
                length = headers.get("content-length", "")
                if length.isdigit() and int(length) > self._max_bytes:
                    raise BodyTooLarge(self._max_bytes)
                if not await self._read(receive, body):
                    return
            except ServeError as error:
                scope["state"]["record"].error = error.code
                if body.more and error.status != 408 and not headers.get("expect"):
                    await discard(receive, self._timeout)
                response = error_response(error)
                # The rest of the body is never read: the connection cannot be used again.
                response.headers["connection"] = "close"
                await response(scope, receive, send)
                return
            await self._app(scope, _replay(body, receive), send_answer)
        finally:
            self._release(body)

    def _release(self, body: _Body) -> None:
        self._held -= body.size
        body.size = 0

    async def _read(self, receive: Receive, body: _Body) -> bool:
        """Collect a body; false when the client left before its end."""
        try:
            async with asyncio.timeout(self._timeout):
                while body.more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    chunk, body.more = message.get("body", b""), message.get("more_body", False)
                    if body.size + len(chunk) > self._max_bytes:
                        raise BodyTooLarge(self._max_bytes)
                    if self._held + len(chunk) > self._max_total:
                        raise NotReady("the server holds too many bodies", retry_after=1)
                    body.chunks.append(chunk)
                    body.size += len(chunk)
                    self._held += len(chunk)
        except TimeoutError:
            raise BadBody(
                408, "body_timeout", f"the body took more than {self._timeout:g} s"
            ) from None
        return True


async def discard(receive: Receive, seconds: float = _DISCARD_SECONDS) -> None:
    """Read on for a while: many clients send all of a body before they look for an answer."""
    left = _DISCARDED_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(min(seconds, _DISCARD_SECONDS)):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
                left -= len(message.get("body", b""))


def _replay(body: _Body, receive: Receive) -> Receive:
    """The body as one message, then whatever comes from the client after it."""

    async def replayed() -> Message:
        if body.chunks:
            whole = b"".join(body.chunks)
            body.chunks.clear()
            return {"type": "http.request", "body": whole, "more_body": False}
        return await receive()

    return replayed

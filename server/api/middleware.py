"""ASGI middleware: request ids and a last catch; bodies read within limits."""

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

from server.api.errors import BadBody, error_response
from server.errors import NotReady, ServeError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DISCARDED_BYTES: Final = 2**26
_DISCARD_SECONDS: Final = 5.0
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:\-]{1,128}")

logger = logging.getLogger(__name__)


class Envelope:
    """Gives every request an id, logs its end, and answers 500 for whatever was raised inside."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = time.monotonic(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception:
            logger.exception("request %s raised", request_id)
            if status:
                # The answer has begun: only cutting it off tells the client that it is broken.
                raise
            failure = error_response(ServeError("something went wrong inside the server"))
            await failure(scope, receive, send_named)
        finally:
            logger.info(
                "%s %s %d %.3f s id=%s",
                scope["method"],
                scope["path"],
                status,
                time.monotonic() - began,
                request_id,
            )


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
        """Bytes of all bodies that are being read or used."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        headers, body = Headers(scope=scope), _Body()
        try:
            try:
                length = headers.get("content-length", "")
                if length.isdigit() and int(length) > self._max_bytes:
                    raise BodyTooLarge(self._max_bytes)
                if not await self._read(receive, body):
                    return
            except ServeError as error:
                if body.more and error.status != 408 and not headers.get("expect"):
                    await self._discard(receive)
                response = error_response(error)
                # The rest of the body is never read: the connection cannot be used again.
                response.headers["connection"] = "close"
                await response(scope, receive, send)
                return
            await self._app(scope, _replay(body, receive), send)
        finally:
            self._held -= body.size

    async def _discard(self, receive: Receive) -> None:
        """Read on for a while: many clients send all of a body before they look for an answer."""
        left = _DISCARDED_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(min(self._timeout, _DISCARD_SECONDS)):
                while left > 0:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return
                    left -= len(message.get("body", b""))

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


def _replay(body: _Body, receive: Receive) -> Receive:
    """The body as one message, then whatever comes from the client after it."""

    async def replayed() -> Message:
        if body.chunks:
            whole = b"".join(body.chunks)
            body.chunks.clear()
            return {"type": "http.request", "body": whole, "more_body": False}
        return await receive()

    return replayed

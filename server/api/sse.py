"""Server-sent events, and callers that leave."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

from starlette.responses import StreamingResponse

from server.request_handle import Caption

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from rediff_model.sampling.outputs import StepEvent
    from server.request_handle import Ticket

T = TypeVar("T")

KEEP_ALIVE_SECONDS: Final = 10.0
KEEP_ALIVE: Final = ": keep-alive\n\n"
LINGER_SECONDS: Final = 30.0
"""For which a caller may read on in a stream after the deadline of its request."""

logger = logging.getLogger(__name__)


class ClientLeft(Exception):
    """The caller closed the connection before its answer was ready."""


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller leaves first.

    Raises:
        ClientLeft: the caller left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return await task
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def events_of(ticket: Ticket) -> AsyncIterator[StepEvent | Caption | None]:
    """A ticket's events up to its caption; None whenever nothing happened for a while.

    Closing the iterator closes the ticket. Raises ServeError when the request fails.
    """
    try:
        while True:
            waiting = asyncio.ensure_future(ticket.next_event())
            try:
                while not (await asyncio.wait((waiting,), timeout=KEEP_ALIVE_SECONDS))[0]:
                    yield None
                yield (event := waiting.result())
            finally:
                waiting.cancel()
            if isinstance(event, Caption):
                return
    finally:
        ticket.close()


def sse(data: object, event: str | None = None) -> str:
    """One server-sent event with JSON data."""
    head = "" if event is None else f"event: {event}\n"
    return f"{head}data: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n"


class EventStream(StreamingResponse):
    """A response of server-sent events, which no proxy should hold back.

    A caller who does not read what was asked for is cut off, for all steps wait in memory.
    """

    def __init__(
        self, lines: AsyncIterator[str], ticket: Ticket, headers: Mapping[str, str] | None = None
    ) -> None:
        usual = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        every = usual | dict(headers or {})
        super().__init__(lines, media_type="text/event-stream", headers=every)
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout_at(self._ticket.deadline + LINGER_SECONDS):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.warning("a stream was not read to its end in time")
        finally:
            # A caller who leaves before the first line leaves `lines` unstarted, its clean-up
            # unrun.
            self._ticket.close()

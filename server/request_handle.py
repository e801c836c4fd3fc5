"""An admitted request: its place, its deadline, and its events on the way to the caller."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rediff_model.sampling.outputs import Generation, StepEvent
from server.engine.request import Failure, Job
from server.errors import (
    BadSetting,
    DeadlineExceeded,
    EngineDown,
    NotReady,
    QueueFull,
    RequestFailed,
    ServeError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from server.engine.engine import Engine
    from server.engine.request import Event, Prepared

RETRY_AFTER = 5
"""Seconds after which a client may ask again when there is no engine."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that a request spent, by stage."""

    decode: float
    vision: float
    queue: float
    generate: float
    total: float


@dataclass(frozen=True, slots=True)
class Caption:
    """A finished request."""

    generation: Generation
    prompt: Prepared
    timing: Timing


class Ticket:
    """An admitted request: its place, its deadline and its events.

    Read `next_event` until it returns a `Caption` or raises. The place is free after the last
    event, the deadline or `close`, whichever comes first.
    """

    def __init__(
        self, release: Callable[[Ticket, str, Caption | None], None], seconds: float
    ) -> None:
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[StepEvent | Caption | ServeError] = asyncio.Queue()
        self._late = DeadlineExceeded(f"no caption within {seconds:g} s")
        self.deadline = self._loop.time() + seconds
        """On the event loop's clock, which is `time.monotonic`."""
        self._timer = self._loop.call_at(self.deadline, self.fail, self._late)
        self.admitted_at = time.monotonic()
        self._decode_seconds = 0.0
        self._job: Job | None = None
        self._engine: Engine | None = None
        self._over = False

    async def next_event(self) -> StepEvent | Caption:
        """The next step, or the caption.

        Raises:
            ServeError: the request failed.
        """
        event = await self._events.get()
        if isinstance(event, ServeError):
            raise event
        return event

    async def caption(self) -> Caption:
        """Skip the steps and wait for the caption; frees the place if the caller is cancelled."""
        try:
            while True:
                event = await self.next_event()
                if isinstance(event, Caption):
                    return event
        finally:
            self.close()

    async def prepare(self, prepared: Awaitable[tuple[Prepared, float]]) -> Prepared:
        """Wait for the prompt and the seconds its picture took to decode, up to the deadline."""
        try:
            async with asyncio.timeout_at(self.deadline):
                prompt, self._decode_seconds = await prepared
        except TimeoutError:
            self.fail(self._late)
            raise self._late from None
        except ServeError as error:
            self.fail(error)
            raise
        except asyncio.CancelledError:
            self.close()
            raise
        return prompt

    def enqueue(self, engine: Engine, job: Job) -> None:
        """Hand the request's job to the engine, unless the request is over by now."""
        if self._over:
            return
        self._job, self._engine = job, engine
        engine.submit(job)

    def fail(self, error: ServeError) -> None:
        """End the request with an error, if it has not ended."""
        if not self._over:
            self._give_up()
            self._events.put_nowait(error)
            self._end(error.reason)

    def close(self) -> None:
        """Give up the request, if it has not ended: its caller left."""
        if not self._over:
            self._give_up()
            self._end("cancelled")

    def _give_up(self) -> None:
        """Tell the engine that nobody waits any more; a late job it drops by itself."""
        if self._engine is not None and self._job is not None and self._loop.time() < self.deadline:
            self._engine.cancel(self._job)

    def _end(self, outcome: str, caption: Caption | None = None) -> None:
        self._over, self._job = True, None
        self._timer.cancel()
        self._release(self, outcome, caption)

    def from_engine(self, event: Event) -> None:
        """Take an event. Runs in the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._receive, event)
        except RuntimeError:
            # The loop is closed: nobody is left to be told.
            return

    def _receive(self, event: Event) -> None:
        if self._over:
            return
        if isinstance(event, Failure):
            error = self._late if event.kind == "deadline" else _error_of(event)
            self._events.put_nowait(error)
            self._end(error.reason)
        elif isinstance(event, StepEvent):
            self._events.put_nowait(event)
        else:
            caption = self._caption(event)
            self._events.put_nowait(caption)
            self._end("caption", caption)

    def _caption(self, generation: Generation) -> Caption:
        job, now = self._job, time.monotonic()
        assert job is not None
        return Caption(
            generation,
            # The rows are large, and a caption waits until its caller reads it.
            replace(job.prompt, rows=None),
            Timing(
                decode=self._decode_seconds,
                vision=job.prompt.vision_seconds,
                queue=job.started_at - job.submitted_at,
                generate=now - job.started_at,
                total=now - self.admitted_at,
            ),
        )


def _error_of(failure: Failure) -> ServeError:
    match failure.kind:
        case "engine":
            return EngineDown("the engine stopped", retry_after=RETRY_AFTER)
        case "queue":
            return QueueFull(failure.message, retry_after=RETRY_AFTER)
        case "memory":
            return NotReady("the server is out of memory", retry_after=RETRY_AFTER)
        case "too_large":
            return BadSetting(failure.message)
    return RequestFailed("the caption could not be computed")

"""Captions from an engine in this process."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from rediff_model.generation import Generation
from server.api.answers import geometric_mean
from server.bulk.item import BulkError, Captioned
from server.bulk.pictures import PictureError
from server.bulk.workers import Decoders
from server.engine.engine import Engine
from server.engine.request import Failure, Job
from server.metrics import Metrics
from server.offline import CannotCaption

if TYPE_CHECKING:
    from collections.abc import Callable

    from rediff_model.settings import SamplerSettings
    from server.api.images import ImageLimits
    from server.bulk.item import Item
    from server.engine.config import EngineConfig
    from server.engine.engine import State
    from server.engine.request import Event, Prepared, Runner
    from server.offline import Order

_REASONS: Final = {
    "request": "the caption could not be begun",
    "step": "the step that computed it failed twice",
    "numbers": "the model gave numbers that are not finite",
    "memory": "there is not enough memory for it",
}

logger = logging.getLogger(__name__)


class Local:
    """Decoders, a thread that encodes pictures for the model, and the engine's own thread."""

    def __init__(
        self,
        engine: Engine,
        decoders: Decoders,
        order: Order,
        settings: SamplerSettings,
        max_batch: int,
        workers: int,
    ) -> None:
        """`engine` is ready; `settings` are the order's for its model."""
        assert engine.runner is not None
        self._engine = engine
        self._runner: Runner = engine.runner
        self._decoders = decoders
        self._order = order
        self._settings = settings
        self.window = _window(max_batch, workers)
        self._done: queue.SimpleQueue[tuple[int, Event | PictureError | BulkError]] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._encode, name="encode", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        load: Callable[[], Runner],
        config: EngineConfig,
        order: Order,
        limits: ImageLimits,
        workers: int,
    ) -> Self:
        """Load the model while the workers start.

        Raises:
            BulkError: the model cannot be loaded, or the order does not fit it.
        """
        states: queue.SimpleQueue[State] = queue.SimpleQueue()
        # The window is what bounds the line here.
        config = replace(config, max_queue=_window(config.max_batch, workers))
        engine = Engine(load, config, Metrics(), states.put)
        engine.start()
        decoders = Decoders(workers, limits)
        try:
            if states.get() != "ready":
                raise BulkError(str(engine.error))
            assert engine.runner is not None
            settings = order.fit(engine.runner)
        except BaseException as error:
            decoders.close()
            engine.close()
            if isinstance(error, CannotCaption):
                raise BulkError(str(error)) from None
            raise
        return cls(engine, decoders, order, settings, config.max_batch, workers)

    def submit(self, number: int, item: Item) -> None:
        self._decoders.submit(number, item)

    def take(self) -> tuple[int, Captioned | PictureError]:
        number, event = self._done.get()
        if isinstance(event, BulkError):
            raise event
        if isinstance(event, PictureError):
            return number, event
        if isinstance(event, Generation):
            return number, self._captioned(event)
        assert isinstance(event, Failure)
        if event.kind == "engine":
            raise BulkError(f"the engine ended: {self._engine.error}")
        return number, PictureError(event.message or _REASONS.get(event.kind, event.kind))

    def close(self) -> None:
        self._decoders.close()
        self._thread.join()
        self._engine.close()

    def _encode(self) -> None:
        """Runs in a thread of its own: from pictures to jobs of the engine."""
        while (decoded := self._decoders.take()) is not None:
            number, picture = decoded
            if isinstance(picture, (PictureError, BulkError)):
                self._done.put((number, picture))
                continue
            try:
                prompt = self._runner.prepare(picture, self._order.prompt)
            # Whatever one picture does to the model must not cost the others.
            except Exception as error:
                logger.debug("a picture could not be encoded", exc_info=True)
                self._done.put((number, PictureError(f"it cannot be encoded: {error}")))
                continue
            self._queue(number, prompt, may_fail=True)

    def _queue(self, number: int, prompt: Prepared, *, may_fail: bool) -> None:
        def told(event: Event) -> None:
            # A step fails for everybody in it, whoever is the cause: the others have a second try.
            if may_fail and isinstance(event, Failure) and event.kind == "step":
                self._queue(number, prompt, may_fail=False)
            else:
                self._done.put((number, event))

        self._engine.submit(Job(prompt, self._settings, told))

    def _captioned(self, done: Generation) -> Captioned:
        return Captioned(
            text=self._runner.decode(done.ids).strip(),
            confidence=round(geometric_mean(done.confidences[: len(done.ids)]), 6),
            revisions=done.revisions,
            steps=done.steps,
            finish_reason=done.finish_reason,
        )


def _window(max_batch: int, workers: int) -> int:
    """A batch that runs, one that waits for its places, and two pictures with every worker."""
    return 2 * (max_batch + workers)

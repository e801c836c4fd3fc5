"""Captions from an engine in this process."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from rediff_model.sampling.outputs import Generation
from server.api.responses import caption_confidence
from server.bulk.decoders import Decoders
from server.bulk.item import BulkError, Captioned, PictureError
from server.engine.engine import Engine
from server.engine.request import Failure, Job
from server.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from rediff_model.sampling.params import SamplerSettings
    from server.bulk.item import Item
    from server.bulk.order import Fitted, Order
    from server.engine.config import EngineConfig
    from server.engine.engine import State
    from server.engine.request import Event, Prepared, Runner
    from server.images.decode import ImageLimits

_REASONS: Final = {
    "request": "the caption could not be begun",
    "step": "the step that computed it failed twice",
    "numbers": "the model gave numbers that are not finite",
    "memory": "there is not enough memory for it",
}

logger = logging.getLogger(__name__)


class EngineClient:
    """An engine that is ready, and how pictures go in and captions come out."""

    def __init__(self, engine: Engine) -> None:
        assert engine.runner is not None
        self._engine = engine
        self.runner: Runner = engine.runner

    def submit(
        self,
        picture: Image.Image,
        fitted: Fitted,
        tell: Callable[[Event | PictureError], None],
    ) -> None:
        """Encode a picture and queue it; `tell` hears what `result` understands, once."""
        try:
            prompt = self.runner.prepare(picture, fitted.question)
        # Whatever one picture does to the model must not cost the others.
        except Exception as error:
            logger.debug("a picture could not be encoded", exc_info=True)
            tell(PictureError(f"it cannot be encoded: {error}"))
        else:
            self._queue(prompt, fitted.settings, tell, may_fail=True)

    def result(self, event: Event | PictureError, fitted: Fitted) -> Captioned | PictureError:
        """The caption of a picture begun with `fitted`, or why there is none.

        Raises:
            BulkError: the engine ended.
        """
        if isinstance(event, PictureError):
            return event
        if isinstance(event, Generation):
            text = self.runner.decode(event.ids).strip()
            return Captioned(
                text=text,
                confidence=caption_confidence(text, event.confidences[: len(event.ids)]),
                revisions=event.revisions,
                steps=event.steps,
                finish_reason=event.finish_reason,
                warning="; ".join(fitted.warnings),
            )
        assert isinstance(event, Failure)
        if event.kind == "engine":
            raise BulkError(f"the engine ended: {self._engine.error}")
        return PictureError(event.message or _REASONS.get(event.kind, event.kind))

    def _queue(
        self,
        prompt: Prepared,
        settings: SamplerSettings,
        tell: Callable[[Event | PictureError], None],
        *,
        may_fail: bool,
    ) -> None:
        def told(event: Event) -> None:
            # A step fails for everybody in it, whoever is the cause: the others have a second try.
            if may_fail and isinstance(event, Failure) and event.kind == "step":
                self._queue(prompt, settings, tell, may_fail=False)
            else:
                tell(event)

        self._engine.submit(Job(prompt, settings, told))


class Local:
    """Decoders, a thread that encodes pictures for the model, and the engine's own thread."""

    def __init__(
        self,
        engine: Engine,
        decoders: Decoders,
        fitted: Fitted,
        max_batch: int,
        workers: int,
    ) -> None:
        """`engine` is ready; `fitted` is the order for its model."""
        self._engine = engine
        self._client = EngineClient(engine)
        self._decoders = decoders
        self._fitted = fitted
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
            fitted = order.fit(engine.runner)
        except BaseException:
            decoders.close()
            engine.close()
            raise
        return cls(engine, decoders, fitted, config.max_batch, workers)

    def submit(self, number: int, item: Item) -> None:
        self._decoders.submit(number, item)

    def take(self) -> tuple[int, Captioned | PictureError]:
        number, event = self._done.get()
        if isinstance(event, BulkError):
            raise event
        return number, self._client.result(event, self._fitted)

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
            tell = partial(self._tell, number)
            self._client.submit(picture, self._fitted, tell)

    def _tell(self, number: int, event: Event | PictureError) -> None:
        self._done.put((number, event))


def _window(max_batch: int, workers: int) -> int:
    """A batch that runs, one that waits for its places, and two pictures with every worker."""
    return 2 * (max_batch + workers)

"""Captions from an engine in this process."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self

from server.bulk.item import BulkError
from server.bulk.pictures import PictureError
from server.bulk.work import Work
from server.bulk.workers import Decoders
from server.engine.engine import Engine
from server.metrics import Metrics
from server.offline import CannotCaption

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.bulk.item import Captioned, Item
    from server.engine.config import EngineConfig
    from server.engine.engine import State
    from server.engine.request import Event, Runner
    from server.images.decode import ImageLimits
    from server.offline import Fitted, Order


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
        self._work = Work(engine)
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
        except BaseException as error:
            decoders.close()
            engine.close()
            if isinstance(error, CannotCaption):
                raise BulkError(str(error)) from None
            raise
        return cls(engine, decoders, fitted, config.max_batch, workers)

    def submit(self, number: int, item: Item) -> None:
        self._decoders.submit(number, item)

    def take(self) -> tuple[int, Captioned | PictureError]:
        number, event = self._done.get()
        if isinstance(event, BulkError):
            raise event
        return number, self._work.result(event, self._fitted)

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
            self._work.begin(picture, self._fitted, tell)

    def _tell(self, number: int, event: Event | PictureError) -> None:
        self._done.put((number, event))


def _window(max_batch: int, workers: int) -> int:
    """A batch that runs, one that waits for its places, and two pictures with every worker."""
    return 2 * (max_batch + workers)

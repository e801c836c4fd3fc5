"""What Ray Data calls on a worker: an engine of its own, with pictures in and captions out."""

from __future__ import annotations

import json
import queue
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from server.bulk.item import BulkError, Captioned, Item, PictureError, decode
from server.bulk.local import EngineClient
from server.bulk.order import Order
from server.engine.engine import Engine
from server.images.decode import image_limits
from server.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from server.bulk.order import Fitted
    from server.engine.engine import State
    from server.engine.request import Event
    from server.settings import Settings

_UNBOUNDED: Final = 2**31
_NOTHING: Final[dict[str, Any]] = asdict(Captioned("", 0.0, 0, 0, "")) | {"error": ""}


class Captions:
    """Captions batches of rows. For `Dataset.map_batches`, with an actor each.

    A row has `key`, passed on as it is; `image`, the bytes of a picture file; `prompt`,
    empty for the default question; and `settings`, JSON with the names of `rediff caption`'s
    sampler options, such as `{"preset": "adaptive", "max_new_tokens": 64}`. Its answer has `key`,
    `text`, `confidence`, `revisions`, `steps`, `finish_reason`, `warning` (how the caption differs
    from what was asked, or empty), and `error`: empty, or why there is no caption. A row that
    comes with an `error` keeps it.

    Calls may overlap; their rows share the engine's steps.
    """

    def __init__(self, settings: Settings, threads: int = 2) -> None:
        """Load the model. `threads` decode pictures and encode them.

        Raises:
            BulkError: it cannot be loaded.
        """
        # Imports torch.
        from server.engine.model_runner import SamplerRunner

        self._asked = settings
        self._limits = image_limits(settings)
        states: queue.SimpleQueue[State] = queue.SimpleQueue()
        # Whoever calls bounds what waits here.
        config = replace(settings.engine(), max_queue=_UNBOUNDED)
        self._engine = Engine(lambda: SamplerRunner.load(config), config, Metrics(), states.put)
        self._engine.start()
        if states.get() != "ready":
            raise BulkError(str(self._engine.error))
        self._client = EngineClient(self._engine)
        self._threads = ThreadPoolExecutor(threads, "prepare")

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """The answers, in the order of the rows.

        Raises:
            BulkError: prompt or settings of a row cannot be used, or the engine ended.
        """
        rows = [
            {name: column[number] for name, column in batch.items()}
            for number in range(len(batch["key"]))
        ]
        orders = {(row["prompt"], row["settings"]) for row in rows}
        fitted = {asked: self._fitted(*asked) for asked in orders}
        asked = [fitted[row["prompt"], row["settings"]] for row in rows]
        done: queue.SimpleQueue[tuple[int, Event | PictureError]] = queue.SimpleQueue()
        for number, row in enumerate(rows):
            self._threads.submit(self._begin, number, row, asked[number], done)
        results = dict(done.get() for _ in rows)
        answers = [self._answer(results[number], one) for number, one in enumerate(asked)]
        columns = {name: [answer[name] for answer in answers] for name in _NOTHING}
        return {"key": [row["key"] for row in rows]} | columns

    def _fitted(self, prompt: str, settings: str) -> Fitted:
        order = Order.read(self._asked, json.loads(settings or "{}"), prompt)
        return order.fit(self._client.runner)

    def _begin(
        self,
        number: int,
        row: Mapping[str, Any],
        fitted: Fitted,
        done: queue.SimpleQueue[tuple[int, Event | PictureError]],
    ) -> None:
        """Runs in a thread: from a row to a job of the engine."""

        def tell(event: Event | PictureError) -> None:
            done.put((number, event))

        try:
            if error := row.get("error"):
                raise PictureError(error)
            picture = decode(Item("", "", "", content=bytes(row["image"])), self._limits)
        except PictureError as error:
            tell(error)
        else:
            self._client.submit(picture, fitted, tell)

    def _answer(self, event: Event | PictureError, fitted: Fitted) -> dict[str, Any]:
        result = self._client.result(event, fitted)
        if isinstance(result, PictureError):
            return _NOTHING | {"error": str(result)}
        return _NOTHING | asdict(result)

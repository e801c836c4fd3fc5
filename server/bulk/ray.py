"""Captions from a Ray cluster: pictures handed out in groups, an engine in every actor."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, Self

from server.bulk.item import BulkError, Captioned, Item, PictureError, read
from server.bulk.tables import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import ModuleType

    from server.bulk.options import BulkOptions
    from server.bulk.order import Order
    from server.settings import Settings

_CALLS: Final = 2
"""Groups that an engine works at, so that it never waits for the last of one."""
_CPUS: Final = 0.5
"""Of a task that reads, and of an engine: two engines leave two processors room to read."""


class RayCaptioner:
    """All pictures become one Ray data set, which `Captions` is mapped over.

    Groups are done in any order. One that comes before its turn is kept in a journal beside the
    output until the output has it, so that no finished group is ever done again.
    """

    window = sys.maxsize
    """A data set is whole before it starts."""

    def __init__(
        self,
        ray: ModuleType,
        options: BulkOptions,
        settings: Settings,
        order: Order,
        ahead: Journal,
    ) -> None:
        """`ray` is connected to a cluster; `ahead` holds what an earlier run finished early."""
        self._ray = ray
        self._options = options
        self._settings = settings
        self._order = order
        self._ahead = ahead
        self._known = {row.pop("source"): Captioned(**row) for row in ahead.rows()}
        self._items: dict[int, Item] = {}
        """Asked for and not yet given."""
        self._turn = 0
        """The first picture that has not come."""
        self._ready: deque[tuple[int, Captioned | PictureError]] = deque()
        self._groups: Iterator[list[dict[str, Any]]] | None = None

    @classmethod
    def open(
        cls, options: BulkOptions, settings: Settings, order: Order, head: Mapping[str, Any]
    ) -> Self:
        """Connect to the cluster that RAY_ADDRESS names, else one of this machine, else start one.

        `head` is what captions depend on.

        Raises:
            BulkError: Ray is not installed or cannot be reached, or another run uses the output.
        """
        assert options.out is not None
        if settings.device.startswith("cuda:"):
            raise BulkError(f"--device {settings.device} is one machine's: with --ray say cuda")
        ray = _load()
        ahead = Journal(ahead_path(options.out), head, overwrite=options.overwrite)
        try:
            if not ray.is_initialized():
                ray.init(
                    include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
                )
        except (OSError, RuntimeError, ray.exceptions.RayError) as error:
            ahead.close()
            raise BulkError(f"Ray cannot be reached: {_line(error)}") from None
        return cls(ray, options, settings, order, ahead)

    def submit(self, number: int, item: Item) -> None:
        known = self._known.pop(item.identity, None)
        if known is None:
            self._items[number] = item
        else:
            self._ready.append((number, known))

    def take(self) -> tuple[int, Captioned | PictureError]:
        if self._groups is None and not self._ready:
            self._groups = self._start()
        while not self._ready:
            assert self._groups is not None
            try:
                group = next(self._groups, None)
            except (RuntimeError, ValueError, self._ray.exceptions.RayError) as error:
                raise BulkError(f"Ray gave up: {_line(error)}") from None
            if group is None:
                raise BulkError(f"Ray gave no answer for {len(self._items)} pictures")
            self._receive(group)
        return self._ready.popleft()

    def close(self) -> None:
        self._groups = None
        if self._items or self._ready:
            self._ahead.close()
        else:
            self._ahead.remove()
        self._ray.shutdown()

    def _start(self) -> Iterator[list[dict[str, Any]]]:
        """Groups of answers as they are done."""
        from server.bulk.ray_engine import Captions

        data = self._ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        # It tells of every data set, and that it has no bars.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        gpus = int(self._ray.cluster_resources().get("GPU", 0))
        if self._settings.device == "cpu":
            gpus = 0
        options = self._options
        rows = [_row(number, item) for number, item in self._items.items()]
        answers = (
            data.from_items(rows, override_num_blocks=-(-len(rows) // options.ray_group))
            .map(
                read_row,
                fn_kwargs={
                    "most_bytes": self._settings.max_image_bytes,
                    "prompt": self._order.prompt or "",
                    "settings": self._sampling(),
                },
                num_cpus=_CPUS,
            )
            .map_batches(
                Captions,
                batch_size=None,
                fn_constructor_kwargs={"settings": self._settings, "threads": options.workers},
                compute=data.ActorPoolStrategy(
                    size=options.ray_engines or gpus or 1,
                    max_concurrent_calls_per_actor=_CALLS,
                    enable_true_multi_threading=True,
                ),
                num_cpus=_CPUS,
                num_gpus=int(gpus > 0),
            )
        )
        for table in answers.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            yield table.to_pylist()

    def _sampling(self) -> str:
        given = self._order.options.model_dump(exclude_none=True)
        if self._order.max_new_tokens is not None:
            given["max_new_tokens"] = self._order.max_new_tokens
        return json.dumps(given)

    def _receive(self, group: list[dict[str, Any]]) -> None:
        while self._turn not in self._items:
            self._turn += 1
        early = bool(group) and group[0]["key"] > self._turn
        for row in group:
            number, error = row.pop("key"), row.pop("error")
            item = self._items.pop(number)
            if error:
                self._ready.append((number, PictureError(error)))
                continue
            caption = Captioned(**row)
            if early:
                self._ahead.append(asdict(caption) | {"source": item.identity})
            self._ready.append((number, caption))


def ahead_path(path: Path) -> Path:
    """Where captions wait that were done before those in front of them."""
    return path.with_name(path.name + ".ray")


def read_row(row: dict[str, Any], most_bytes: int, prompt: str, settings: str) -> dict[str, Any]:
    """The row of a picture for `Captions`. Runs on a worker."""
    size = None if row["size"] < 0 else row["size"]
    item = Item(os.fsdecode(row["source"]), "", "", offset=row["offset"], size=size)
    image, error = b"", ""
    try:
        image = read(item, most_bytes)
    except PictureError as reason:
        error = str(reason)
    return {
        "key": row["key"],
        "image": image,
        "prompt": prompt,
        "settings": settings,
        "error": error,
    }


def _row(number: int, item: Item) -> dict[str, Any]:
    # File names that are no UTF-8 are no text for Arrow either, and workers stand elsewhere.
    return {
        "key": number,
        "source": os.fsencode(os.path.join(os.getcwd(), item.source)),
        "offset": item.offset,
        "size": -1 if item.size is None else item.size,
    }


def _load() -> ModuleType:
    """Ray with its data library.

    Raises:
        BulkError: it is not installed.
    """
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError:
        raise BulkError("--ray needs Ray: pip install 'rediff-serve[ray]'") from None
    module: ModuleType = ray
    return module


def _line(error: BaseException) -> str:
    """What was raised on a worker, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    error = getattr(error, "cause", None) or error
    return " ".join(str(error).split()) or type(error).__name__

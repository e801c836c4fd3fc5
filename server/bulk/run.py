"""A run: pictures in, captions out, in the order of the inputs, and what is shown of it."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Never, Protocol

from tqdm import tqdm

from rediff_model.files.atomic import replacing, sweep
from server.bulk.item import PictureError, Unreadable, one_line
from server.bulk.wording import CUT_OFF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from server.bulk.item import Captioned, Item
    from server.bulk.outputs import Doubt, Output
    from server.bulk.wording import Wording


class Captioner(Protocol):
    """Takes pictures and gives captions, in whatever order they are done."""

    @property
    def window(self) -> int:
        """Pictures to submit ahead, so that there is always work."""
        ...

    def submit(self, number: int, item: Item) -> None:
        """Ask for a caption, known by a number."""
        ...

    def take(self) -> tuple[int, Captioned | PictureError]:
        """Wait for some caption that was asked for, or for why there is none.

        Raises:
            BulkError: there will be no more captions.
        """
        ...

    def close(self) -> None:
        """Give up whatever is under way."""
        ...


@dataclass(slots=True)
class Tally:
    """What became of the pictures."""

    captions: int = 0
    doubtful: int = 0
    """Of the captions, as those that were cut off."""
    cut_off: int = 0
    skipped: int = 0
    """Had a caption before, or were named twice."""
    failed: int = 0

    @property
    def nothing(self) -> bool:
        """True if there was no picture at all."""
        return not (self.captions or self.skipped or self.failed)


class Observer(Protocol):
    """Is told what happens in a run."""

    def failed(self, name: str, source: str, reason: str) -> None:
        """A picture has no caption."""
        ...

    def warned(self, warning: str) -> None:
        """A caption differs from what was asked; every such text once."""
        ...

    def advanced(self, tally: Tally, worked: bool) -> None:
        """A picture is done; `worked` is false if it was skipped."""
        ...


class Run:
    """Keeps the captioner's window full and hands on what is done, the earliest first.

    With the order kept, a run that was killed and goes on writes what one that was not would have
    written.
    """

    def __init__(
        self,
        captioner: Captioner,
        output: Output,
        wording: Wording,
        doubt: Doubt,
        observer: Observer,
    ) -> None:
        self._captioner = captioner
        self._output = output
        self._wording = wording
        self._doubt = doubt
        self._observer = observer
        self._warned: set[str] = set()
        self._seen: set[str] = set()
        self._items: dict[int, Item] = {}
        """Submitted and not handed on, by number."""
        self._results: dict[int, Captioned | PictureError] = {}
        """Of those, what came back before its turn."""
        self._next = 0
        self._handed_on = 0
        self.tally = Tally()

    def over(self, inputs: Iterable[Item | Unreadable]) -> float:
        """Caption everything and finish the output; the seconds that it took.

        Raises:
            BulkError: there will be no more captions. What is done is kept.
        """
        began = time.monotonic()
        for item in inputs:
            self._admit(item)
            while len(self._items) >= self._captioner.window:
                self._collect()
        while self._items:
            self._collect()
        self._output.finish()
        return time.monotonic() - began

    def _admit(self, item: Item | Unreadable) -> None:
        if isinstance(item, Unreadable):
            self._fail(item.source, item.source, item.reason)
            return
        if self._output.once and item.identity in self._seen:
            self._skip()
            return
        self._seen.add(item.identity)
        reason = self._output.refusal(item)
        if reason is not None:
            self._fail(item.name, item.identity, reason)
        elif self._output.is_done(item):
            self._skip()
        else:
            self._items[self._next] = item
            self._captioner.submit(self._next, item)
            self._next += 1

    def _collect(self) -> None:
        """Wait for a result, and hand on all whose turn it is."""
        number, result = self._captioner.take()
        self._results[number] = result
        while self._handed_on in self._results:
            item = self._items.pop(self._handed_on)
            result = self._results.pop(self._handed_on)
            self._handed_on += 1
            try:
                if isinstance(result, PictureError):
                    raise result
                self._keep(item, result)
            except PictureError as error:
                self._fail(item.name, item.identity, str(error))

    def _keep(self, item: Item, result: Captioned) -> None:
        caption = replace(result, text=self._wording.around(result.text, result.finish_reason))
        if caption.warning and caption.warning not in self._warned:
            self._warned.add(caption.warning)
            self._observer.warned(caption.warning)
        self._output.add(item, caption)
        self.tally.captions += 1
        self.tally.doubtful += self._doubt(caption.confidence)
        self.tally.cut_off += caption.finish_reason == CUT_OFF
        self._observer.advanced(self.tally, True)

    def _fail(self, name: str, source: str, reason: str) -> None:
        self.tally.failed += 1
        self._observer.failed(name, source, reason)
        self._observer.advanced(self.tally, True)

    def _skip(self) -> None:
        self.tally.skipped += 1
        self._observer.advanced(self.tally, False)


class Progress:
    """Shows a run on stderr: a bar on a terminal, failures and warnings as lines above it."""

    def __init__(
        self,
        count: Callable[[], int | None],
        *,
        shown: bool | None = None,
        failed: Callable[[str, str, str], None] | None = None,
    ) -> None:
        """`count` returns how many pictures there are, or None; it runs in a thread, as it may
        take long. `shown` forces or hides the bar. `failed` gets the failures instead of stderr.
        """
        disable = not (sys.stderr.isatty() if shown is None else shown)
        self._bar: tqdm[Never] = tqdm(
            unit=" captions", file=sys.stderr, disable=disable, dynamic_ncols=True, mininterval=0.5
        )
        self._failed = failed
        self._total: int | None = None
        if not disable:
            threading.Thread(target=self._count, args=(count,), daemon=True).start()

    def failed(self, name: str, source: str, reason: str) -> None:
        if self._failed is not None:
            self._failed(name, source, reason)
        else:
            self._print(f"{source}: {reason}")

    def warned(self, warning: str) -> None:
        self._print(warning)

    def advanced(self, tally: Tally, worked: bool) -> None:
        if self._total is not None:
            # Skipping takes no time, and would promise an early end.
            self._bar.total = self._total - tally.skipped
        if tally.failed:
            self._bar.set_postfix(failed=tally.failed, refresh=False)
        self._bar.update(worked)

    def close(self) -> None:
        self._bar.close()

    def _print(self, line: str) -> None:
        # In one line also if there are line ends in names.
        tqdm.write(one_line(f"rediff: {line}"), file=sys.stderr)

    def _count(self, count: Callable[[], int | None]) -> None:
        self._total = count()


class Report:
    """Lines are collected in a temporary file, which replaces `path` when the run ends."""

    def __init__(self, path: Path) -> None:
        sweep(path.resolve().parent)
        self._closing = ExitStack()
        self._stream = self._closing.enter_context(replacing(path))

    def add(self, name: str, source: str, reason: str) -> None:
        """Write the line of one picture."""
        row = {"id": name, "source": source, "reason": reason}
        self._stream.write(json.dumps(row).encode() + b"\n")
        self._stream.flush()

    def close(self) -> None:
        """Put the file in place."""
        self._closing.close()

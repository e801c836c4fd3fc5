"""A run: pictures in, captions out, in the order of the inputs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from server.bulk.item import CUT_OFF, Unreadable
from server.bulk.pictures import PictureError
from server.bulk.progress import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from server.bulk.captioner import Captioner
    from server.bulk.item import Captioned, Item, Wording
    from server.bulk.output import Doubt, Output


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
        on_failure: Callable[[str, str, str], None],
        on_progress: Callable[[Tally, bool], None],
        on_warning: Callable[[str], None],
    ) -> None:
        """`on_failure` gets name, source and reason; `on_progress` whether work was done;
        `on_warning` every warning of a caption once."""
        self._captioner = captioner
        self._output = output
        self._wording = wording
        self._doubt = doubt
        self._on_failure = on_failure
        self._on_progress = on_progress
        self._on_warning = on_warning
        self._warned: set[str] = set()
        self._seen: set[str] = set()
        self._items: dict[int, Item] = {}
        """Submitted and not handed on, by number."""
        self._results: dict[int, Captioned | PictureError] = {}
        """Of those, what came back before its turn."""
        self._next = 0
        self._handed_on = 0
        self.tally = Tally()

    def all(self, inputs: Iterable[Item | Unreadable]) -> float:
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
        if item.identity in self._seen:
            self._skip()
            return
        self._seen.add(item.identity)
        reason = self._output.refuses(item)
        if reason is not None:
            self._fail(item.name, item.identity, reason)
        elif self._output.holds(item):
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
            self._on_warning(caption.warning)
        self._output.add(item, caption)
        self.tally.captions += 1
        self.tally.doubtful += self._doubt(caption.confidence)
        self.tally.cut_off += caption.finish_reason == CUT_OFF
        self._on_progress(self.tally, True)

    def _fail(self, name: str, source: str, reason: str) -> None:
        self.tally.failed += 1
        self._on_failure(name, source, reason)
        self._on_progress(self.tally, True)

    def _skip(self) -> None:
        self.tally.skipped += 1
        self._on_progress(self.tally, False)

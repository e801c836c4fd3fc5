"""A bar on stderr: captions, captions a second, time left, failures."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Never

from tqdm import tqdm

from server.bulk.names import one_line

if TYPE_CHECKING:
    from collections.abc import Callable


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


class Progress:
    """Drawn where there is a terminal, unless it is told otherwise."""

    def __init__(self, count: Callable[[], int | None], *, shown: bool | None = None) -> None:
        """`count` says how many pictures there are, or None; in a thread, as it may take long."""
        disable = not (sys.stderr.isatty() if shown is None else shown)
        self._bar: tqdm[Never] = tqdm(
            unit=" captions", file=sys.stderr, disable=disable, dynamic_ncols=True, mininterval=0.5
        )
        self._total: int | None = None
        if not disable:
            threading.Thread(target=self._count, args=(count,), daemon=True).start()

    def show(self, tally: Tally, advanced: bool) -> None:
        """Draw; `advanced` says that a picture was worked on, not skipped."""
        if self._total is not None:
            # Skipping takes no time, and would promise an early end.
            self._bar.total = self._total - tally.skipped
        if tally.failed:
            self._bar.set_postfix(failed=tally.failed, refresh=False)
        self._bar.update(advanced)

    def tell(self, line: str) -> None:
        """A line on stderr above the bar, also if there are line ends in names."""
        tqdm.write(one_line(line), file=sys.stderr)

    def close(self) -> None:
        self._bar.close()

    def _count(self, count: Callable[[], int | None]) -> None:
        self._total = count()

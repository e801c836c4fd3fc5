"""What a run needs of the place that captions go to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from server.bulk.item import Captioned, Item


class Output(Protocol):
    """Takes captions in the order of the inputs, each picture once."""

    def refuses(self, item: Item) -> str | None:
        """Why there is no place for this picture's caption, such as a name that is taken."""
        ...

    def holds(self, item: Item) -> bool:
        """Whether the caption is there from a run before. Asked after `refuses`."""
        ...

    def add(self, item: Item, caption: Captioned) -> None:
        """Keep a caption so that it outlives the process."""
        ...

    def finish(self) -> None:
        """Nothing more comes: give the output its final form."""
        ...

    def close(self) -> None:
        """Let go of files; without `finish` before, a later run goes on."""
        ...


class Doubt:
    """Which captions go to the second output."""

    def __init__(self, min_confidence: float | None) -> None:
        self._least = min_confidence

    @property
    def active(self) -> bool:
        """Whether there is a limit."""
        return self._least is not None

    def __call__(self, confidence: float) -> bool:
        """Whether a confidence is below the limit, if there is one."""
        return self._least is not None and confidence < self._least

"""What a run needs of whoever makes the captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from server.bulk.item import Captioned, Item
    from server.bulk.pictures import PictureError


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

"""What a picture file may be at most, and the error of one that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Reason = Literal["empty", "broken", "too_large", "unsupported"]

MIN_PARTS: Final = 20_000
BYTES_PER_PART: Final = 256
"""A file may consist of `MIN_PARTS` parts, and one more for each so many of its bytes."""


class PictureError(ValueError):
    """A file that is no usable picture. The message holds no path, address or content."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Limits:
    """What a picture may be at most."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_side: int = 30_000

    def check_size(self, width: int, height: int) -> None:
        """Refuse a picture of this size if it is above a limit.

        Raises:
            PictureError: empty, or too many pixels, or a side too long.
        """
        if width < 1 or height < 1:
            raise broken()
        if width * height > self.max_pixels:
            raise PictureError(
                "too_large",
                f"the image is {width} x {height} pixels, above the limit of {self.max_pixels}",
            )
        if max(width, height) > self.max_side:
            raise PictureError(
                "too_large",
                f"the image is {width} x {height}, above the side limit of {self.max_side}",
            )


class Parts:
    """Counts the parts of a file: a small file can hold millions, and each costs a walk to it."""

    def __init__(self, size: int) -> None:
        """`size` is the file's, in bytes."""
        self._left = MIN_PARTS + size // BYTES_PER_PART

    def count(self) -> None:
        """One more part.

        Raises:
            PictureError: there are too many.
        """
        self._left -= 1
        if self._left < 0:
            raise PictureError("broken", "the image consists of too many parts")


def broken() -> PictureError:
    """The error of a file that ends too early or contradicts itself."""
    return PictureError("broken", "the image is broken or cut short")

"""What passes through a run: a picture of a data set, its content, and what became of it."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rediff_model.network.addresses import is_url
from server.images.decode import ImageError, ImageLimits, decode_image

if TYPE_CHECKING:
    from PIL import Image


class BulkError(Exception):
    """The run cannot start or go on; the message is one line."""


@dataclass(frozen=True, slots=True)
class Item:
    """A picture: where it is, and what it is called. Made by the inputs."""

    source: str
    """The file of the picture, or of the shard that holds it."""
    name: str
    """What outputs call it."""
    relative: str
    """Where it is below its root, with / and without the suffix of the file."""
    suffix: str = ""
    """Of the picture's file, with the dot."""
    member: str = ""
    """Which picture of the shard; empty for a file."""
    offset: int = 0
    """First byte in the source."""
    size: int | None = None
    """Bytes; None: the whole file."""
    content: bytes | None = field(default=None, repr=False)
    """The bytes, when the shard cannot be read from the middle."""

    @property
    def identity(self) -> str:
        """The same in every run over the same data, and no other picture's."""
        return f"{self.source}#{self.member}" if self.member else self.source


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A part of the inputs that gives no pictures, or no more of them."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Captioned:
    """A caption with what outputs tell of it."""

    text: str
    confidence: float
    """Geometric mean of the tokens' probabilities."""
    revisions: int
    steps: int
    finish_reason: str
    warning: str = ""
    """How the caption differs from what was asked; empty: it does not."""

    def row(self, item: Item) -> dict[str, Any]:
        """One row of a table."""
        return {
            "id": item.name,
            "source": item.identity,
            "caption": self.text,
            "confidence": self.confidence,
            "revisions": self.revisions,
            "steps": self.steps,
            "finish_reason": self.finish_reason,
            "warning": self.warning,
        }


class PictureError(Exception):
    """A picture that cannot be used; the message says why, in a line."""


def read(item: Item, most_bytes: int) -> bytes:
    """The bytes of a picture's file.

    Raises:
        PictureError: it cannot be read, or is larger than `most_bytes`.
    """
    if item.content is not None:
        content = item.content
    else:
        try:
            content = _read(item, most_bytes)
        except OSError as error:
            if is_url(item.source):
                raise PictureError("it is a URL: download it first") from None
            raise PictureError(error.strerror or type(error).__name__) from None
        except ValueError as error:
            raise PictureError(str(error)) from None
    if len(content) > most_bytes:
        raise PictureError(f"the file is above the limit of {most_bytes} bytes")
    return content


def _read(item: Item, most_bytes: int) -> bytes:
    path = Path(item.source)
    # Opening a pipe would wait for somebody to write to it.
    if stat.S_ISFIFO(path.stat().st_mode):
        raise ValueError("it is a pipe, not a file")
    wanted = most_bytes + 1 if item.size is None else min(item.size, most_bytes + 1)
    with path.open("rb") as stream:
        stream.seek(item.offset)
        content = stream.read(wanted)
    if item.size is not None and len(content) < wanted:
        raise ValueError("the shard ends within the picture")
    return content


def decode(item: Item, limits: ImageLimits) -> Image.Image:
    """The picture, through the same door as those of the server.

    Raises:
        PictureError: it cannot be read or decoded, or is above a limit.
    """
    try:
        return decode_image(read(item, limits.max_bytes), limits)
    except ImageError as error:
        raise PictureError(error.message) from None


def utf8(name: str) -> str:
    """The name as valid Unicode: bytes that are no UTF-8 become codes, unlike those of others."""
    return name.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """The text with codes for line ends and for whatever else a terminal would obey."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()

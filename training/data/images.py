"""Pictures of training data: opened safely, from folders or from the shards of an archive."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rediff_model.files.image_formats.limits import Limits, PictureError
from rediff_model.files.pictures import decode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL import Image

    from training.data.archive import Member

MAX_PIXELS = Limits().max_pixels


class ImageError(ValueError):
    """A picture that cannot be used; the message names it and says why."""


class ImageStore(Protocol):
    """Where the pictures of a source are found by the name a row gives them."""

    def open(self, name: str) -> Image.Image:
        """The picture as RGB.

        Raises:
            ImageError: it is not there, or cannot be decoded.
        """
        ...


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Pictures under a folder, by relative path. Links in it may lead anywhere, names may not."""

    root: Path
    max_pixels: int = MAX_PIXELS

    def open(self, name: str) -> Image.Image:
        """The picture as RGB."""
        root = os.path.abspath(self.root)
        # By its text alone, which decides before a link is followed.
        path = Path(os.path.normpath(os.path.join(root, name)))
        if not path.is_relative_to(root):
            raise ImageError(f"{name} lies outside {self.root}")
        return open_rgb(path, self.max_pixels)


@dataclass(frozen=True, slots=True)
class ImageShards:
    """Pictures in uncompressed tar archives, by member name, with the shard's name before it
    (`000.tar/cat.jpg`) where several shards have one of that name."""

    members: Mapping[str, Member]
    max_pixels: int = MAX_PIXELS

    def open(self, name: str) -> Image.Image:
        """The picture as RGB."""
        member = self.members.get(name)
        if member is None:
            raise ImageError(f"{name} is in no shard, or in several")
        return open_rgb(member.read(), self.max_pixels)


def open_rgb(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture as RGB, by the decoder that serves: upright, the first frame, on white.

    Raises:
        ImageError: not there, not of a format that is read, broken, truncated, or of more than
            `max_pixels`, which is read from the header before anything is decoded.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else _read(source)
        return decode(data, Limits(max_bytes=len(data), max_pixels=max_pixels))
    except (OSError, ValueError, PictureError) as error:
        raise ImageError(f"{name} cannot be decoded: {error}") from error


def _read(path: Path) -> bytes:
    # A pipe would be waited for, a device may never end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a plain file")
    return path.read_bytes()

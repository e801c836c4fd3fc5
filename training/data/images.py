"""Pictures of training data: opened safely, from folders or from the shards of an archive."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from training.data.archive import Member

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000


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
    """Pictures under a folder, by relative path."""

    root: Path
    max_pixels: int = MAX_PIXELS

    def open(self, name: str) -> Image.Image:
        """The picture as RGB."""
        try:
            path = (self.root / name).resolve()
        except (OSError, ValueError) as error:
            raise ImageError(f"{name!r:.80} is no file name: {error}") from None
        if not path.is_relative_to(self.root.resolve()):
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
    """Decode a picture as RGB, upright; the first frame of several, without transparency.

    Raises:
        ImageError: not there, not one of `FORMATS`, broken, truncated, or of more than
            `max_pixels`, which is read from the header before anything is decoded.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(f"{name} has {width} x {height} pixels, over {max_pixels}")
            return _rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Exception as error:  # On broken files decoders raise whatever they stumble over.
        raise ImageError(f"{name} cannot be decoded: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip these at 255 instead of scaling them down.
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) // 256
        image = Image.fromarray(grey.astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")

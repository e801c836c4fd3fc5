"""From an item to the bytes and the pixels of its picture."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from rediff_model.network.addresses import is_url
from server.images.decode import ImageError, ImageLimits, decode_image

if TYPE_CHECKING:
    from PIL import Image

    from server.bulk.item import Item


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

"""TIFF files with nothing but the tags that make up their first page."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from rediff_model.files.image_formats.limits import Limits, PictureError, broken

_WIDTH, _HEIGHT, _COMPRESSION = 256, 257, 259
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_SUBFILE, _SUB_FILES, _DNG_VERSION = 254, 330, 50706
_REDUCED: Final = 1
"""Flag of `_SUBFILE`: the page is a smaller copy of another one."""
_KEPT: Final = frozenset(
    (
        *(_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT),
        *(258, 262, 266, 277, 284),  # bits, colours, fill order, samples, planes
        *(273, 278, 279, 324, 325),  # strips and tiles
        *(274, 292, 293, 317, 320),  # orientation, fax options, predictor, palette
        *(338, 339, 347, 529, 530, 531, 532),  # alpha, sample format, JPEG tables, YCbCr
    )
)
_COMPRESSIONS: Final = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)
_SIZES: Final = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)
"""Bytes of a value by its type."""
_NUMBERS: Final = (1, 3, 4, 16)
"""The types of which widths and the like are."""
_MAX_VALUE: Final = 2**21
"""Bytes of a tag: the places of tiles of 16 x 16 in a picture of fifty million pixels fit."""


class _Layout(NamedTuple):
    """The two kinds of TIFF: codes of `struct`."""

    start: int
    """Where the place of the first page stands."""
    offset: str
    tags: str
    """How many tags there are."""
    entry: str
    """Tag, type, number of values, and the place of the values or they themselves."""


_CLASSIC: Final = _Layout(4, "I", "H", "HHI4s")
_BIG: Final = _Layout(8, "Q", "Q", "HHQ8s")


def first_picture(data: bytes, limits: Limits) -> bytes:
    """The file with one page and only the tags in use: others may be as large as the file, each.

    Raises:
        PictureError: no page, a camera's raw file, a compression that is not read, or a page or
            tile that is too large.
    """
    order = "<" if data.startswith(b"II") else ">"
    layout = _BIG if data[2:4] in (b"+\0", b"\0+") else _CLASSIC
    if layout is _BIG and order == ">":
        raise PictureError("unsupported", "BigTIFF with the highest byte first is not read")
    try:
        kept, first, last, values = _tags(data, order, layout)
    except struct.error:
        raise broken() from None
    thumbnail = values.get(_SUBFILE, 0) & _REDUCED and _SUB_FILES in values
    if data[8:10] == b"CR" or _DNG_VERSION in values or thumbnail:
        raise PictureError("unsupported", "camera raw files are not read")
    limits.check_size(values.get(_WIDTH, 0), values.get(_HEIGHT, 0))
    if _TILE_WIDTH in values:
        limits.check_size(values[_TILE_WIDTH], values.get(_TILE_HEIGHT, 0))
    if (compression := values.get(_COMPRESSION, 1)) not in _COMPRESSIONS:
        raise PictureError("unsupported", f"TIFF of compression {compression} is not read")
    page = struct.pack(order + layout.tags, len(kept)) + b"".join(kept)
    page += bytes(struct.calcsize(order + layout.offset))
    # As there are no more tags than before, they fit in their old place.
    return data[:first] + page[: last - first].ljust(last - first, b"\0") + data[last:]


def _tags(data: bytes, order: str, layout: _Layout) -> tuple[list[bytes], int, int, dict[int, int]]:
    """Entries of the first page that are kept, where it begins and ends, and single values."""
    (first,) = struct.unpack_from(order + layout.offset, data, layout.start)
    (count,) = struct.unpack_from(order + layout.tags, data, first)
    size = struct.calcsize(order + layout.entry)
    begin = first + struct.calcsize(order + layout.tags)
    last = begin + count * size + struct.calcsize(order + layout.offset)
    if count > 65_535 or last > len(data) + 8:
        raise broken()
    kept: dict[int, bytes] = {}
    values: dict[int, int] = {}
    for place in range(begin, begin + count * size, size):
        tag, kind, number, value = struct.unpack_from(order + layout.entry, data, place)
        if kind in _NUMBERS and tag not in values and 0 < number * _SIZES[kind] <= len(value):
            values[tag] = int.from_bytes(value[: _SIZES[kind]], "little" if order == "<" else "big")
        if tag not in _KEPT or tag in kept:
            continue
        if kind >= len(_SIZES) or number * _SIZES[kind] > _MAX_VALUE:
            raise broken()
        kept[tag] = data[place : place + size]
    return list(kept.values()), first, min(last, len(data)), values

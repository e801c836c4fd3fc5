"""AVIF files: the still picture alone, if what it makes the decoder do is within limits."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

from rediff_model.files.image_formats.av1 import check_frames
from rediff_model.files.image_formats.limits import Limits, Parts, PictureError, broken

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_TABLES: Final = 2**16
"""Bytes of all tables of items: the time for them grows with their square."""
_MAX_PROPERTIES: Final = 1000
_UNBOUNDED: Final = (b"idat", b"free", b"skip", b"uuid")


class _Box(NamedTuple):
    """A box of the file: its kind, where it begins, and where its content does and ends."""

    kind: bytes
    start: int
    body: int
    end: int


def first_picture(data: bytes, limits: Limits) -> bytes:
    """The file without its animation.

    Decoders take memory for the sizes that the frames name, whatever the file's head says, so
    those are checked too.

    Raises:
        PictureError: there is no still picture, too many items, or a frame that is too large.
    """
    parts, still = Parts(len(data)), bytearray(data)
    for box in _boxes(data, 0, len(data), parts):
        if box.kind == b"ftyp":
            still[box.body : box.end] = data[box.body : box.end].replace(b"avis", b"avif")
        elif box.kind == b"moov":
            still[box.start + 4 : box.start + 8] = b"free"
        elif box.kind == b"meta":
            # The decoder, too, looks at no box behind this one.
            _check_meta(data, box, limits, parts)
            return bytes(still)
    raise PictureError("unsupported", "AVIF without a still picture is not read")


def _check_meta(data: bytes, meta: _Box, limits: Limits, parts: Parts) -> None:
    tables = 0
    found: dict[bytes, list[_Box]] = defaultdict(list)
    inner = list(_boxes(data, meta.body + 4, meta.end, parts))
    for box in inner:
        found[box.kind].append(box)
        if box.kind == b"iprp":
            for child in _boxes(data, box.body, box.end, parts):
                if child.kind != b"ipco":
                    tables += child.end - child.start
                elif sum(1 for _ in _boxes(data, child.body, child.end, parts)) > _MAX_PROPERTIES:
                    raise PictureError("broken", "the image consists of too many parts")
        elif box.kind not in _UNBOUNDED:
            tables += box.end - box.start
    if tables > _MAX_TABLES:
        raise PictureError("broken", "the image consists of too many parts")
    pictures = {
        item for box in found[b"iinf"] for item, kind in _kinds(data, box, parts) if kind == b"av01"
    }
    inside = found[b"idat"][0].body if found[b"idat"] else len(data)
    left = 2 * len(data)
    for box in found[b"iloc"]:
        for item, extents in _locations(data, box, inside, parts):
            if item in pictures:
                frames = b"".join(data[at : at + size if size else None] for at, size in extents)
                left -= len(frames)
                if left < 0:
                    raise broken()
                check_frames(frames, limits, parts)


def _boxes(data: bytes, place: int, end: int, parts: Parts) -> Iterator[_Box]:
    while place + 8 <= end:
        parts.count()
        size, body = int.from_bytes(data[place : place + 4], "big"), place + 8
        if size == 1:
            size, body = int.from_bytes(data[body : body + 8], "big"), place + 16
        last = place + size if size else end
        if last < body or last > end:
            raise broken()
        yield _Box(data[place + 4 : place + 8], place, body, last)
        place = last


def _kinds(data: bytes, iinf: _Box, parts: Parts) -> Iterator[tuple[int, bytes]]:
    """Items and what they are."""
    for box in _boxes(data, iinf.body + (6 if data[iinf.body] == 0 else 8), iinf.end, parts):
        wide = 4 if data[box.body] >= 3 else 2
        item = int.from_bytes(data[box.body + 4 : box.body + 4 + wide], "big")
        yield item, data[box.body + 6 + wide : box.body + 10 + wide]


def _locations(
    data: bytes, iloc: _Box, inside: int, parts: Parts
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Items and the runs of bytes they consist of: place and length, 0 for all to the end."""
    place = iloc.body

    def number(size: int) -> int:
        nonlocal place
        place += size
        if place > iloc.end:
            raise broken()
        return int.from_bytes(data[place - size : place], "big")

    version, _, sizes, more = number(1), number(3), number(1), number(1)
    wide = 4 if version == 2 else 2
    for _ in range(number(wide)):
        item = number(wide)
        method = number(2) & 15 if version else 0
        number(2)
        base, extents = number(more >> 4), []
        for _ in range(number(2)):
            parts.count()
            number(more & 15 if version else 0)
            at = base + number(sizes >> 4) + (inside if method == 1 else 0)
            extents.append((at, number(sizes & 15)))
        yield item, extents

"""JPEG files, without what stands behind the picture."""

from __future__ import annotations

import re
from typing import Final

from rediff_model.files.image_formats.limits import Parts, PictureError

MAX_SCANS: Final = 100
"""A progressive picture has about ten; each costs a pass over all pixels."""

# The next marker as decoders find it: stuffed bytes, fill bytes and restarts lead to none.
_MARKER: Final = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
_END, _SCAN = 0xD9, 0xDA
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def first_picture(data: bytes) -> bytes:
    """The file up to the end of its picture: phones append videos and further pictures.

    Scans and markers inside segments, such as those of an embedded thumbnail, are not counted.

    Raises:
        PictureError: too many scans or segments, or samples of more than eight bits.
    """
    parts, scans, place = Parts(len(data)), 0, 2
    while (found := _MARKER.search(data, place)) is not None:
        parts.count()
        marker = found[1][0]
        if marker == _END:
            return data[: found.end()]
        if marker == _SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise PictureError("broken", f"the JPEG has more than {MAX_SCANS} scans")
        segment = found.end()
        if marker in _FRAMES and (bits := data[segment + 2 : segment + 3]) not in (b"", b"\x08"):
            raise PictureError("unsupported", f"JPEG of {bits[0]} bits a sample is not read")
        place = segment + max(2, int.from_bytes(data[segment : segment + 2], "big"))
    return data

"""PNG files, without the chunks that say nothing of the picture."""

from __future__ import annotations

import zlib
from typing import Final

from rediff_model.files.image_formats.limits import Parts, broken

_SIGNATURE: Final = 8
_END: Final = b"IEND\xae\x42\x60\x82"
_CRITICAL: Final = (b"IHDR", b"PLTE", b"IDAT")
_USED: Final = (b"tRNS", b"eXIf")
"""Ancillary chunks that change what is shown: transparency and orientation."""


def first_picture(data: bytes) -> bytes:
    """The file with its critical chunks, transparency and orientation.

    Texts, colour profiles and frames of an animation are left out, of whatever size, and so are
    transparency and orientation with a wrong checksum, as browsers do.

    Raises:
        PictureError: cut short, a critical chunk with a wrong checksum, or too many chunks.
    """
    parts, place, view = Parts(len(data)), _SIGNATURE, memoryview(data)
    kept = [view[:_SIGNATURE]]
    while True:
        parts.count()
        kind = data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if kind == b"IEND":
            # Without its checksum the file is still whole.
            return b"".join(kept) + bytes(4) + _END
        if len(kind) < 4 or end > len(data):
            raise broken()
        if kind in _CRITICAL or kind in _USED:
            right = zlib.crc32(view[place + 4 : end - 4]) == int.from_bytes(
                data[end - 4 : end], "big"
            )
            if not right and kind in _CRITICAL:
                raise broken()
            if right:
                kept.append(view[place:end])
        place = end

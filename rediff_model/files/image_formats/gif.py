"""GIF files up to their first frame."""

from __future__ import annotations

from typing import Final

from rediff_model.files.image_formats.limits import Limits, Parts, broken

_IMAGE, _EXTENSION, _PADDING = b",", b"!", b"\0"
_CONTROL: Final = b"!\xf9\4"
_TRANSPARENT: Final = 1
"""Flag of a control block: the last of its bytes is the transparent colour."""


def first_picture(data: bytes, limits: Limits) -> bytes:
    """The file with its palette, the transparent colour and the first frame.

    Comments and other extensions before the frame are left out.

    Raises:
        PictureError: there is no frame, too many extensions, or the frame is too large.
    """
    parts = Parts(len(data))
    flags = data[10:11] or b"\0"
    place = header = 13 + _palette(flags[0])
    control = b""
    # Some writers end a block twice.
    while (kind := data[place : place + 1]) in (_EXTENSION, _PADDING):
        parts.count()
        if kind == _PADDING:
            place += 1
            continue
        if data.startswith(_CONTROL, place):
            # How the frame is disposed of matters to the next one alone.
            shown = (data[place + 3] if len(data) > place + 3 else 0) & _TRANSPARENT
            control = _CONTROL + bytes((shown, 0, 0)) + data[place + 6 : place + 7] + b"\0"
        place += 2
        while (length := data[place] if place < len(data) else 0) > 0:
            parts.count()
            place += 1 + length
        place += 1
    frame = data[place : place + 10]
    if len(frame) < 10 or frame[:1] != _IMAGE:
        raise broken()
    left, top, width, height = (int.from_bytes(frame[at : at + 2], "little") for at in (1, 3, 5, 7))
    screen = (int.from_bytes(data[at : at + 2], "little") for at in (6, 8))
    limits.check_size(*map(max, screen, (left + width, top + height)))
    return data[:header] + control + data[place:]


def _palette(flags: int) -> int:
    """Bytes of the global palette."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0

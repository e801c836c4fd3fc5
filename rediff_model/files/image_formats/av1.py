"""Sizes of the frames of an AV1 stream, read from its headers (AV1 specification, section 5)."""

from __future__ import annotations

from typing import Final, NamedTuple

from rediff_model.files.image_formats.limits import Limits, Parts, PictureError, broken

_SEQUENCE: Final = 1
_FRAMES: Final = (3, 6, 7)
_KEY_FRAME, _SWITCH_FRAME = 0, 3
_CHOSEN_BY_FRAME: Final = 2


class _Bits:
    """Reads numbers of some bits each, the first bit the highest."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, bits: int) -> int:
        self._left -= bits
        if self._left < 0:
            raise broken()
        return self._value >> self._left & (1 << bits) - 1

    def skip_variable(self) -> None:
        """A number of unknown length: zeros, a one, and as many bits as there were zeros."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        self.take(zeros if zeros < 32 else 0)


class _Sequence(NamedTuple):
    """What a sequence header tells about those of its frames."""

    still: bool
    """All frames have the sequence's size."""
    time_bits: int
    """Of a frame's time, if it is told."""
    id_bits: int
    screen_content: int
    integer_motion: int


def check_frames(data: bytes, limits: Limits, parts: Parts) -> None:
    """Refuse a stream whose frames are, or might be, above the limits.

    Raises:
        PictureError: too large, a frame of another size than its sequence, or broken headers.
    """
    place, sequence = 0, None
    while place < len(data):
        parts.count()
        head = data[place]
        kind, place = head >> 3 & 15, place + (2 if head & 4 else 1)
        end = len(data)
        if head & 2:
            size = 0
            for shift in range(0, 56, 7):
                byte = data[place] if place < len(data) else 0
                place += 1
                size |= (byte & 127) << shift
                if byte < 128:
                    break
            end = place + size
        # Headers are shorter than this.
        bits = _Bits(data[place : min(end, place + 512)])
        if kind == _SEQUENCE:
            sequence = _sequence(bits, limits)
        elif kind in _FRAMES:
            if sequence is None:
                raise broken()
            if _has_own_size(bits, sequence):
                raise PictureError("unsupported", "AVIF with frames of several sizes is not read")
        place = end


def _sequence(bits: _Bits, limits: Limits) -> _Sequence:
    take = bits.take
    take(4)
    still, time_bits = bool(take(1)), 0
    if still:
        take(5)
    else:
        delay_bits = 0
        if take(1):
            take(64)
            same_interval = take(1)
            if same_interval:
                bits.skip_variable()
            if take(1):
                delay_bits = take(5) + 1
                take(32 + 5)
                time_bits = take(5) + 1
                if same_interval:
                    time_bits = 0
        display_delay = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delay_bits and take(1):
                take(2 * delay_bits + 1)
            if display_delay and take(1):
                take(4)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    limits.check_size(take(width_bits) + 1, take(height_bits) + 1)
    if still:
        return _Sequence(still, time_bits, 0, _CHOSEN_BY_FRAME, _CHOSEN_BY_FRAME)
    id_bits = take(4) + take(3) + 3 if take(1) else 0
    take(7)
    if take(1):
        take(2)
    screen_content = _CHOSEN_BY_FRAME if take(1) else take(1)
    integer_motion = _CHOSEN_BY_FRAME if not screen_content or take(1) else take(1)
    return _Sequence(still, time_bits, id_bits, screen_content, integer_motion)


def _has_own_size(bits: _Bits, sequence: _Sequence) -> bool:
    """Whether a frame's header overrides the size of its sequence."""
    take = bits.take
    if sequence.still or take(1):
        return False
    kind, shown = take(2), take(1)
    if kind == _SWITCH_FRAME:
        return True
    take(sequence.time_bits if shown else 1)
    if not (kind == _KEY_FRAME and shown):
        take(1)
    take(1)
    if sequence.screen_content == _CHOSEN_BY_FRAME:
        screen_content = take(1)
    else:
        screen_content = sequence.screen_content
    if screen_content and sequence.integer_motion == _CHOSEN_BY_FRAME:
        take(1)
    take(sequence.id_bits)
    return bool(take(1))

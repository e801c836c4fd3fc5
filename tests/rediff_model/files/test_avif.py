"""AVIF files whose heads promise less than their frames, or tables, cost."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from picture_files import box, encode, noise
from PIL import Image

from rediff_model.files.image_formats import av1, avif
from rediff_model.files.image_formats.limits import Limits, Parts, PictureError
from rediff_model.files.pictures import decode

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = Limits(max_pixels=1_000_000, max_side=5_000)


def children(data: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 0
    while place < len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        found.append((kind, data[place + 8 : place + size]))
        place += size
    return found


def rebuilt(data: bytes, change: Callable[[bytes, bytes], bytes]) -> bytes:
    """The file with other content in the boxes of its `meta`; places in it are not mended."""
    whole = b""
    for kind, body in children(data):
        if kind == b"meta":
            inner = children(body[4:])
            body = body[:4] + b"".join(box(name, change(name, old)) for name, old in inner)
        whole += box(kind, body)
    return whole


def refusal(data: bytes) -> PictureError:
    with pytest.raises(PictureError) as caught:
        decode(data, LIMITS)
    return caught.value


def test_a_frame_larger_than_the_head_says_is_refused_before_it_is_decoded() -> None:
    data = encode(Image.new("RGB", (1200, 1000), "white"), "AVIF", speed=10)
    place = data.index(b"ispe") + 8
    small = data[:place] + struct.pack(">II", 16, 16) + data[place + 8 :]
    assert refusal(small).reason == "too_large"
    assert "1200 x 1000" in str(refusal(small))


@pytest.mark.parametrize("kind", [b"iloc", b"iinf", b"iref"])
def test_tables_of_countless_items_are_refused(kind: bytes) -> None:
    many = struct.pack(">IHI", 2 << 24, 0x4400, 20_000) + b"".join(
        struct.pack(">IHHHII", item, 0, 0, 1, 0, 4) for item in range(20_000)
    )
    data = rebuilt(
        encode(noise(), "AVIF"), lambda name, old: many if name in (kind, b"pitm") else old
    )
    assert "too many parts" in str(refusal(data))


def test_countless_properties_are_refused() -> None:
    def change(name: bytes, old: bytes) -> bytes:
        if name != b"iprp":
            return old
        (_, properties), *others = children(old)
        many = properties + box(b"free", b"") * 1001
        return box(b"ipco", many) + b"".join(box(*other) for other in others)

    assert "too many parts" in str(refusal(rebuilt(encode(noise(), "AVIF"), change)))


def test_an_animation_without_a_still_picture_is_named() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    data = encode(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    assert decode(data, LIMITS).getpixel((0, 0)) == (255, 255, 255)
    assert data.count(b"meta") == 1
    refused = refusal(data.replace(b"meta", b"free"))
    assert (refused.reason, "still picture" in str(refused)) == ("unsupported", True)


def test_what_is_read_of_an_animation_is_its_still_picture() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    data = encode(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    still = avif.first_picture(data, LIMITS)
    assert b"avis" in data
    assert b"avis" not in still
    # The tables of an animation before the still picture would be read.
    moov = box(b"moov", box(b"trak", b"\xff" * 40))
    place = data.index(b"meta") - 4
    before = avif.first_picture(data[:place] + moov + data[place:], LIMITS)
    assert before.index(b"free") == place + 4


@pytest.mark.parametrize("cut", range(8, 300, 7))
def test_a_file_that_is_cut_is_broken(cut: int) -> None:
    assert refusal(encode(noise(), "AVIF")[:cut]).reason in ("broken", "unsupported")


def bits(*fields: tuple[int, int]) -> bytes:
    """Numbers of so many bits each, padded to whole bytes."""
    text = "".join(f"{value:0{width}b}" for value, width in fields)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


def unit(kind: int, body: bytes) -> bytes:
    """One unit of a stream, with its length."""
    return bytes((kind << 3 | 2, len(body))) + body


SIZE = ((9, 4), (9, 4), (639, 10), (479, 10))
TOOLS = ((0, 1), (0, 7), (0, 1), (1, 1), (1, 1))
"""No frame ids; no tools, no order hints; screen content and integer motion are the frame's."""
STILL = bits((0, 3), (1, 1), (1, 1), (0, 5), *SIZE)
PLAIN = bits((0, 3), (0, 2), (0, 1), (0, 1), (0, 5), (0, 12), (0, 5), *SIZE, *TOOLS)
TIMED = bits(
    *((0, 3), (0, 2)),
    # Timing, of equal intervals with a number of variable length, and the decoder's model.
    *((1, 1), (1, 32), (25, 32), (1, 1), (0, 2), (1, 1), (2, 2), (1, 1)),
    *((7, 5), (1, 32), (7, 5), (7, 5)),
    # Two operating points with delays.
    *((1, 1), (1, 5)),
    *((0, 12), (8, 5), (1, 1), (1, 1), (1, 8), (1, 8), (0, 1), (1, 1), (3, 4)),
    *((0, 12), (4, 5), (0, 1), (0, 1)),
    *SIZE,
    # Frame ids of 10 + 2 bits, order hints, no screen content.
    *((1, 1), (7, 4), (2, 3), (0, 7), (1, 1), (0, 2), (0, 1), (0, 1)),
)


def check(*units: bytes) -> None:
    av1.check_frames(b"".join(units), LIMITS, Parts(1000))


@pytest.mark.parametrize("sequence", [STILL, PLAIN, TIMED])
def test_the_size_is_found_in_every_kind_of_header(sequence: bytes) -> None:
    check(unit(1, sequence))
    for limits in (Limits(max_pixels=640 * 480 - 1), Limits(max_side=639)):
        with pytest.raises(PictureError, match="640 x 480"):
            av1.check_frames(unit(1, sequence), limits, Parts(1000))


KEY = ((0, 1), (0, 2), (1, 1))
"""A new key frame that is shown."""


@pytest.mark.parametrize("kind", [3, 6, 7])
def test_frames_that_override_the_size_are_refused(kind: int) -> None:
    for own in (0, 1):
        # Cumulative updates on, screen content with its motion, then the override.
        plain = unit(kind, bits(*KEY, (0, 1), (1, 1), (0, 1), (own, 1)))
        hidden = unit(kind, bits((0, 1), (2, 2), (0, 1), (1, 1), (0, 1), (0, 1), (0, 1), (own, 1)))
        timed = unit(kind, bits(*KEY, (0, 1), (4095, 12), (own, 1)))
        for sequence, frame in ((PLAIN, plain), (PLAIN, hidden), (TIMED, timed)):
            if own:
                with pytest.raises(PictureError, match="several sizes"):
                    check(unit(1, sequence), frame)
            else:
                check(unit(1, sequence), frame)
    with pytest.raises(PictureError, match="several sizes"):
        check(unit(1, PLAIN), unit(kind, bits((0, 1), (3, 2), (1, 1), (0, 8))))
    check(unit(1, PLAIN), unit(kind, bits((1, 1), (0, 7))))


def test_frames_without_a_sequence_and_headers_that_end_early_are_broken() -> None:
    for stream in ((unit(6, b"\0"),), (unit(1, b"\0"),), (b"\x0a",), (b"\x0a\x80\x80",)):
        with pytest.raises(PictureError, match="broken"):
            check(*stream)

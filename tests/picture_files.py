"""Picture files for tests, also those that no library writes."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 60, height: int = 40, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, body: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def gif(
    frames: Sequence[bytes], screen: tuple[int, int], palette: bytes, before: bytes = b""
) -> bytes:
    """A GIF of ready frames, each from its descriptor on; `before` stands behind the palette."""
    bits = (len(palette) // 3 - 1).bit_length() - 1
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80 | bits, 0, 0) + palette
    return head + before + b"".join(frames) + b";"


def gif_frame(box: tuple[int, int, int, int], pixels: bytes, control: bytes = b"") -> bytes:
    """A frame of up to four colours, its codes as wide as they begin: left, top, width, height."""
    # A clear code (4) before every two pixels keeps all codes three bits wide.
    codes = [code for at in range(0, len(pixels), 2) for code in (4, *pixels[at : at + 2])] + [5]
    value = sum(code << 3 * place for place, code in enumerate(codes))
    data = value.to_bytes((3 * len(codes) + 7) // 8, "little")
    blocks = b"".join(
        bytes([len(part)]) + part
        for part in (data[at : at + 255] for at in range(0, len(data), 255))
    )
    return control + b"," + struct.pack("<HHHHB", *box, 0) + b"\2" + blocks + b"\0"


def bmp(
    width: int, height: int, bits: int, body: bytes, compression: int = 0, colours: int = 0
) -> bytes:
    """A BMP with a header of forty bytes and a palette of reds that get darker."""
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, colours, 0
    )
    palette = b"".join(bytes((0, 0, 255 - i, 0)) for i in range(colours))
    start = 54 + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + palette + body


def tiff(
    tags: Mapping[int, Sequence[int]], body: bytes, *, order: str = "<", big: bool = False
) -> bytes:
    """A TIFF of one strip behind its page; every value is a LONG, or a LONG8 if `big`."""
    start, size, code = (16, 8, "Q") if big else (8, 4, "I")
    values = {273: [0], 279: [len(body)]} | {tag: list(value) for tag, value in tags.items()}
    entry = 12 + 2 * (size - 4)
    page = (8 if big else 2) + len(values) * entry + size
    outside = sum(size * len(value) for value in values.values() if len(value) > 1)
    values[273] = [start + page + outside]
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + ("HHQ" if big else "I"), *((8, 0, start) if big else (start,)))
    entries, data, place = b"", b"", start + page
    for tag, value in sorted(values.items()):
        kind = 16 if big else 4
        packed = struct.pack(f"{order}{len(value)}{code}", *value)
        if len(value) > 1:
            data, packed = data + packed, struct.pack(order + code, place + len(data))
        entries += struct.pack(order + "HH" + code, tag, kind, len(value)) + packed
    count = struct.pack(order + ("Q" if big else "H"), len(values))
    return head + count + entries + bytes(size) + data + body


def box(kind: bytes, body: bytes) -> bytes:
    """A box of an ISO base media file."""
    return struct.pack(">I", len(body) + 8) + kind + body

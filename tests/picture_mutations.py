"""Broken pictures: a corpus of every kind that the door takes, and mutations of it."""

from __future__ import annotations

import random
import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

from picture_files import bmp, tiff
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def corpus() -> list[bytes]:
    """Small valid files of all formats, modes and features."""
    chance = random.Random(0)
    pixels = chance.randbytes(24 * 16 * 3)
    colour = Image.frombytes("RGB", (24, 16), pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.frombytes("I;16", (24, 16), pixels[: 24 * 16 * 2])
    frames: dict[str, Any] = {"save_all": True, "append_images": [colour.convert("L"), colour]}
    files = [
        _file(colour, "JPEG"),
        _file(colour, "JPEG", progressive=True, quality=95, subsampling=0),
        _file(colour, "JPEG", exif=exif, icc_profile=b"profile" * 20, comment=b"words"),
        _file(colour.convert("CMYK"), "JPEG"),
        _file(colour.convert("L"), "JPEG", restart_marker_blocks=1),
        _file(colour, "PNG"),
        _file(colour, "PNG", exif=exif, compress_level=0),
        _file(colour.convert("RGBA"), "PNG"),
        _file(colour.convert("LA"), "PNG"),
        _file(colour.convert("1"), "PNG"),
        _file(colour.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=b"\0\x80"),
        _file(wide, "PNG", transparency=300),
        _file(colour, "PNG", **frames),
        _interlaced(pixels),
        _file(colour, "WEBP"),
        _file(colour.convert("RGBA"), "WEBP", lossless=True, exif=exif),
        _file(colour, "WEBP", **frames),
        _file(Image.new("RGB", (1, 1)), "PNG"),
        _file(Image.new("L", (1, 20_000)), "PNG"),
        _file(Image.new("L", (1, 20_000)), "JPEG"),
        _file(Image.new("RGB", (16_383, 1)), "WEBP"),
    ]
    palette = colour.quantize(16)
    clear = colour.convert("RGBA")
    files += [
        _file(palette, "GIF", interlace=0),
        _file(palette, "GIF", interlace=1, transparency=3, comment=b"words" * 100),
        _file(palette, "GIF", **frames, disposal=2),
        _file(colour, "BMP"),
        _file(palette, "BMP"),
        _file(clear, "BMP"),
        _file(colour.convert("1"), "BMP"),
        bmp(24, 16, 8, bytes((24, 1, 0, 0)) * 16, compression=1, colours=2),
        _file(colour, "TIFF"),
        _file(clear, "TIFF", compression="tiff_lzw", exif=exif),
        _file(colour.convert("CMYK"), "TIFF", compression="tiff_deflate", tiffinfo={278: 5}),
        _file(colour, "TIFF", compression="jpeg"),
        _file(colour.convert("1"), "TIFF", compression="group4"),
        _file(palette, "TIFF", compression="packbits"),
        _file(wide, "TIFF", big_tiff=True),
        _file(colour, "TIFF", **frames),
        tiff({256: [24], 257: [16], 258: [8], 262: [1]}, pixels[: 24 * 16], order=">"),
        _file(colour, "AVIF", speed=10),
        _file(clear, "AVIF", speed=10, exif=exif, icc_profile=b"profile" * 20, xmp=b"<x:xmpmeta>"),
        _file(colour, "AVIF", speed=10, **frames),
    ]
    return [*files, files[5] + b"PK\x03\x04" + files[0], files[0] + files[5]]


def mutations(seed: int, count: int) -> Iterator[bytes]:
    """`count` broken files, the same ones for a seed."""
    chance, files = random.Random(seed), corpus()
    for _ in range(count):
        data = bytearray(chance.choice(files))
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            _mutate(data, chance, files)
        yield bytes(_signed(data) if chance.random() < 0.5 else data)


def _mutate(data: bytearray, chance: random.Random, files: list[bytes]) -> None:
    if len(data) < 16:
        data += chance.choice(files)
    # Headers are the first bytes, and there a change matters most.
    place = chance.randrange(min(len(data), 80) if chance.random() < 0.5 else len(data))
    match chance.randrange(8):
        case 0:
            data[place] ^= 1 << chance.randrange(8)
        case 1:
            data[place] = chance.randrange(256)
        case 2:
            value, order = chance.choice(_EXTREMES), chance.choice(("<", ">"))
            size, code = chance.choice(((1, "B"), (2, "H"), (4, "I")))
            data[place : place + size] = struct.pack(order + code, value % 256**size)
        case 3:
            del data[place:]
        case 4:
            del data[place : place + chance.randrange(1, 64)]
        case 5:
            data[place:place] = chance.randbytes(chance.randrange(1, 64))
        case 6:
            piece = data[place : place + chance.randrange(1, 200)]
            data[place:place] = piece * chance.choice((1, 1, 2, 50))
        case _:
            other = chance.choice(files)
            data[place:] = other[chance.randrange(len(other)) :]


def _signed(data: bytearray) -> bytearray:
    """A PNG with right checksums again, so that what was changed in its chunks is looked at."""
    if not data.startswith(b"\x89PNG"):
        return data
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return data


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _interlaced(pixels: bytes) -> bytes:
    """An interlaced PNG of sixteen-bit colours, which Pillow does not write."""
    passes = b"".join(
        (b"\0" + (pixels * 2)[: 6 * width]) * height
        for width, height in ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4))
    )
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(passes)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )

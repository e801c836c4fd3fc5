"""Which format a file has, by its first bytes, and the file suffixes of pictures."""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
"""The formats that are read."""

SUFFIX: Final[dict[Format, str]] = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "AVIF": ".avif",
}
"""The suffix that a file of the format is given."""
SUFFIXES: Final = (
    *SUFFIX.values(),
    *(".jpeg", ".jpe", ".jfif", ".tiff"),
    # Not read, but pictures of phones: passed over in silence, they would be missing.
    *(".heic", ".heif"),
)
"""The suffixes, in lower case, of the files of a folder or shard that are pictures."""

_HEAD: Final = 1024
_BMP_HEADERS: Final = (12, 40, 52, 56, 64, 108, 124)
_HEIF_BRANDS: Final = re.compile(rb"he(ic|ix|im|is|vc|vx|vm|vs)")
_UNREAD: Final = (
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", "JPEG 2000"),
    (rb"II\xbc\x01", "JPEG XR"),
    (rb"IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW", "camera raw"),
    (rb"8BPS|8BPB", "PSD"),
    (rb"%PDF-", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"\0\0\x01\0[^\0]", "ICO"),
    (rb"icns", "ICNS"),
    (rb"P[1-6][ \t\r\n#]", "PNM"),
    (rb"DDS ", "DDS"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?RADIANCE|#\?RGBE", "Radiance HDR"),
    (rb"qoif", "QOI"),
    (rb"SIMPLE  =", "FITS"),
    (rb"gimp xcf", "XCF"),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", "Windows metafile"),
    (rb".{128}DICM", "DICOM"),
    (rb"\x1a\x45\xdf\xa3|RIFF.{4}AVI |FLV\x01|OggS|\0\0\x01[\xb3\xba]", "video"),
    (rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.*?)?(?:<!--.*?-->\s*|<!DOCTYPE svg.*?)*<svg[\s>:]", "SVG"),
    (rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body)[\s>]", "HTML"),
    (rb"version https://git-lfs", "Git LFS pointer"),
    (rb"PK\x03\x04", "ZIP"),
    (rb"\x1f\x8b", "gzip"),
)
_UNREAD_PATTERNS: Final = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE if name in ("SVG", "HTML") else re.DOTALL), name)
    for pattern, name in _UNREAD
)


def format_of(data: bytes) -> Format | None:
    """The format of a file, None if it is none of `FORMATS`."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    # Two letters alone begin many a text.
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if {b"avif", b"avis"} & set(_brands(data)):
        return "AVIF"
    return None


def unread_name(data: bytes) -> str | None:
    """What a file is that `format_of` does not know, if that can be seen."""
    brands = _brands(data)
    if any(_HEIF_BRANDS.fullmatch(brand) for brand in brands):
        return "HEIC"
    if brands:
        main = brands[0]
        if main in (b"mif1", b"msf1", b"mif2"):
            return "HEIF"
        return "camera raw" if main == b"crx " else "video"
    head = data[:_HEAD]
    return next((name for pattern, name in _UNREAD_PATTERNS if pattern.match(head)), None)


def _brands(data: bytes) -> list[bytes]:
    """The brands of an ISO base media file, the main one first; none of another file."""
    if data[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(data[:4], "big"), _HEAD)
    return [data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))]

"""The one door for pictures: bytes from outside in, an RGB picture or a named error out."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image

from server.errors import ServeError

FORMATS: Final = ("JPEG", "PNG", "WEBP")
MAX_PILLOW_PIXELS: Final = 178_956_970
"""Above this Pillow itself refuses to open a file."""
MAX_JPEG_SCANS: Final = 100
"""A progressive picture has about ten; each costs a pass over all pixels."""

MIN_READS: Final = 20_000
BYTES_PER_READ: Final = 256
"""A file may be read `MIN_READS` times, and once more for each so many of its bytes."""

_ORIENTATION_TAG: Final = 0x0112
_ORIENTATIONS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ServeError):
    """A body that is no usable picture. The message is ours: no path, no address, no content."""

    reason = "image"

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message, param="image")
        self.status = status
        """400 broken, 413 too large, 415 not a picture of the formats taken."""
        self.code = code


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a picture may be at most."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_side: int = 30_000


class _Counted(BytesIO):
    """A file that may be read only so often.

    Pillow walks chunks, markers and stray bytes in Python, of which a small file can hold millions.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = MIN_READS + len(data) // BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ImageError(400, "image_broken", "the image consists of too many parts")
        return super().read(size)


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decode a JPEG, PNG or WEBP file to RGB, upright, its first frame, on white.

    Pixels and sides are checked against the header before any pixel is decoded. Sixteen-bit
    grey is scaled to eight bits.

    Raises:
        ImageError: 400 empty or broken, 413 above a limit, 415 another format or no picture.
    """
    if not data:
        raise ImageError(400, "image_empty", "the image is empty")
    if len(data) > limits.max_bytes:
        raise ImageError(
            413,
            "image_too_large",
            f"the image has {len(data)} bytes, above the limit of {limits.max_bytes}",
        )
    _check_signature(data)
    with _open(data, limits) as image:
        _check_size(image.size, limits)
        try:
            image.load()
            if image.format == "PNG":
                # The pixels may be whole in a file that is cut in its checksums.
                with _open(data, limits) as again:
                    again.verify()
            picture = _to_rgb(image)
        except ImageError:
            raise
        # A hostile file can make a decoder raise nearly anything (OSError, SyntaxError,
        # struct.error, IndexError, MemoryError, ...): all of it means a broken picture.
        except Exception:
            raise _broken() from None
        orientation = _orientation(image)
    return picture.transpose(orientation) if orientation is not None else picture


def _check_signature(data: bytes) -> None:
    png = data.startswith(b"\x89PNG\r\n\x1a\n")
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    jpeg = data.startswith(b"\xff\xd8\xff")
    if not (png or webp or jpeg):
        raise ImageError(415, "unsupported_image", f"the image must be one of {', '.join(FORMATS)}")
    # In entropy-coded data the byte ff is always followed by 00, so this counts scans.
    if jpeg and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise ImageError(400, "image_broken", f"the JPEG has more than {MAX_JPEG_SCANS} scans")


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    try:
        return Image.open(_Counted(data), formats=FORMATS)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            413,
            "image_too_large",
            f"the image has far more pixels than the limit of {limits.max_pixels}",
        ) from None
    except Exception:  # as above: whatever a header parser raises, the file is broken
        raise _broken() from None


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise _broken()
    if width * height > limits.max_pixels:
        raise ImageError(
            413,
            "image_too_large",
            f"the image is {width} x {height} pixels, above the limit of {limits.max_pixels}",
        )
    if max(width, height) > limits.max_side:
        raise ImageError(
            413,
            "image_too_large",
            f"the image is {width} x {height}, above the side limit of {limits.max_side}",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        return _from_sixteen_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    picture = Image.new("RGB", image.size, "white")
    picture.paste(coloured, mask=coloured.getchannel("A"))
    return picture


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Grey of 0 to 65535 scaled to 0 to 255, rounded; a transparent level becomes white."""
    wide = np.asarray(image).astype(np.uint32).clip(max=65535)
    grey = ((wide + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[wide == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """The turn that the EXIF orientation asks for; a broken EXIF block asks for none."""
    try:
        return _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # the pixels are good, so whatever is wrong with the block is no error
        return None


def _broken() -> ImageError:
    return ImageError(400, "image_broken", "the image is broken or cut short")

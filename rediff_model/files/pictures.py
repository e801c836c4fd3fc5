"""The one decoder of picture files, for inference and training: the same pixels for both."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from rediff_model.files.image_formats import avif, gif, jpeg, png, tiff
from rediff_model.files.image_formats.limits import (
    BYTES_PER_PART,
    Limits,
    Parts,
    PictureError,
    broken,
)
from rediff_model.files.image_formats.names import FORMATS, Format, format_of, unread_name

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

# Not `Image.open`, which can reach decoders of a dozen more formats.
_DECODERS: Final[dict[Format, type[ImageFile]]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
_BMP_RUNS: Final = (1, 2)
"""Compressions of BMP whose decoder reads byte by byte."""
_READS_OF_RUNS: Final = 2**20
_PIXELS_OF_RUNS: Final = 2**22
"""Each costs a round of a loop in Python."""
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
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


class _Counted(BytesIO):
    """A file that may be read only so often: Pillow walks markers and stray bytes in Python."""

    def __init__(self, data: bytes, parts: Parts) -> None:
        super().__init__(data)
        self._parts = parts

    def read(self, size: int | None = -1, /) -> bytes:
        self._parts.count()
        return super().read(size)


def decode(data: bytes, limits: Limits) -> Image.Image:
    """Decode a picture file to RGB: upright, its first frame, on white.

    Sizes are checked against the header before any pixel is decoded. Sixteen-bit grey is scaled to
    eight bits. Colour profiles are not applied.

    Raises:
        PictureError: empty, broken, above a limit, or not one of `FORMATS`.
    """
    if not data:
        raise PictureError("empty", "the image is empty")
    if len(data) > limits.max_bytes:
        raise PictureError(
            "too_large", f"the image has {len(data)} bytes, above the limit of {limits.max_bytes}"
        )
    if (kind := format_of(data)) is None:
        raise _unread(data)
    try:
        return _decode(kind, _first_picture(kind, data, limits), limits)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        message = f"the image has far more pixels than the limit of {limits.max_pixels}"
        raise PictureError("too_large", message) from None
    # A hostile file can make a decoder raise nearly anything (OSError, SyntaxError,
    # struct.error, IndexError, MemoryError, ...): all of it means a broken picture.
    except Exception:
        raise broken() from None


def _unread(data: bytes) -> PictureError:
    name = unread_name(data)
    is_what = "" if name is None else f"the file is {name}, which is not read: "
    return PictureError("unsupported", f"{is_what}the image must be one of {', '.join(FORMATS)}")


def _first_picture(kind: Format, data: bytes, limits: Limits) -> bytes:
    """The file without what its decoder would read in vain, or could be harmed by."""
    match kind:
        case "JPEG":
            return jpeg.first_picture(data)
        case "PNG":
            return png.first_picture(data)
        case "GIF":
            return gif.first_picture(data, limits)
        case "TIFF":
            return tiff.first_picture(data, limits)
        case "AVIF":
            return avif.first_picture(data, limits)
        case "WEBP":
            # The decoder takes memory for the canvas when it is opened.
            if data[12:16] == b"VP8X":
                sides = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
                limits.check_size(*sides)
            return data
        case "BMP":
            return data


def _decode(kind: Format, data: bytes, limits: Limits) -> Image.Image:
    runs = kind == "BMP" and int.from_bytes(data[30:34], "little") in _BMP_RUNS
    parts = Parts(len(data) + (_READS_OF_RUNS * BYTES_PER_PART if runs else 0))
    if runs:
        limits = replace(limits, max_pixels=min(limits.max_pixels, _PIXELS_OF_RUNS))
    with _DECODERS[kind](_Counted(data, parts)) as image:
        limits.check_size(*image.size)
        covered = image.tile[0][1] if kind == "GIF" else None
        image.load()
        picture = _to_rgb(image)
        if covered is not None and covered != (0, 0, *image.size):
            # What the first frame leaves out is transparent.
            whole = Image.new("RGB", image.size, "white")
            whole.paste(picture.crop(covered), covered)
            picture = whole
        orientation = _orientation(image)
    return picture.transpose(orientation) if orientation is not None else picture


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        return _from_sixteen_bits(image)
    if image.mode in ("I", "F", "LAB"):
        # Nothing says which of their values is white, or the colours need a profile.
        raise PictureError("unsupported", f"{image.format} of mode {image.mode} is not read")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    coloured = image.convert("RGBA")
    alpha = coloured.getchannel("A")
    if image.format == "BMP" and alpha.getextrema() == (0, 0):
        # Written by programs that leave the fourth byte unused.
        return coloured.convert("RGB")
    picture = Image.new("RGB", image.size, "white")
    picture.paste(coloured, mask=alpha)
    return picture


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Grey of up to sixteen bits scaled to eight, rounded; a transparent level becomes white."""
    wide, white = np.asarray(image).astype(np.uint32), 2**16 - 1
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        white = 2 ** image.tag_v2.get(_TIFF_BITS, (16,))[0] - 1
        if image.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
            wide = white - wide
    grey = ((wide * 255 + white // 2) // white).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[wide == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """The turn that the EXIF orientation asks for; a broken EXIF block asks for none."""
    if image.format == "TIFF":
        # Its decoder has turned the picture.
        return None
    try:
        return _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # the pixels are good, so whatever is wrong with the block is no error
        return None

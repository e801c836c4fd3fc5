"""The server's door for pictures: the shared decoder with errors of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rediff_model.files.image_formats.limits import Limits, PictureError, Reason
from rediff_model.files.pictures import decode
from server.errors import ServeError

if TYPE_CHECKING:
    from PIL import Image

    from server.settings import Settings

ImageLimits = Limits

_ERRORS: Final[dict[Reason, tuple[int, str]]] = {
    "empty": (400, "image_empty"),
    "broken": (400, "image_broken"),
    "too_large": (413, "image_too_large"),
    "unsupported": (415, "unsupported_image"),
}


class ImageError(ServeError):
    """A body that is no usable picture. The message is ours: no path, no address, no content."""

    reason = "image"

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message, param="image")
        self.status = status
        """400 broken, 413 too large, 415 not a picture of the formats taken."""
        self.code = code


def image_limits(settings: Settings) -> ImageLimits:
    """Return the limits that the settings set."""
    return ImageLimits(settings.max_image_bytes, settings.max_image_pixels, settings.max_image_side)


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Decode a picture file to RGB, upright, its first frame, on white.

    Raises:
        ImageError: 400 empty or broken, 413 above a limit, 415 another format or no picture.
    """
    try:
        return decode(data, limits)
    except PictureError as error:
        raise ImageError(*_ERRORS[error.reason], str(error)) from None

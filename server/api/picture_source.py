"""The bytes of a picture from the text that a client gives: base64, a data URL, or another URL."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final

from rediff_model.files.image_formats.names import format_of, unread_name
from server.errors import BadBody

if TYPE_CHECKING:
    from server.images.fetch import Fetch

_WHITESPACE: Final = {ord(character): None for character in " \t\r\n\f\v"}
_URL_SAFE: Final = str.maketrans("-_", "+/")
_SCHEME: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9+.\-]{0,20}):")
_ESCAPES: Final = {
    **{"%2B": "+", "%2F": "/", "%3D": "=", "%2D": "-", "%5F": "_"},
    **{"%20": "", "%09": "", "%0A": "", "%0D": ""},
}
_HEAD: Final = 200
"""Characters in which the parameters of a data URL end."""
_HINTS: Final = {
    "blob": "a blob: URL is known to the page that made it alone: send the picture's base64",
    "file": "a file: URL names a file of the client's machine: send the picture's base64",
}


def from_url(url: str, param: str, fetch: Fetch) -> bytes:
    """The bytes behind a URL; base64 of a picture without `data:` before it is taken too.

    `fetch` gets those of any URL but a data URL.

    Raises:
        BadBody: neither a URL nor base64 of a picture, or whatever `fetch` raises.
    """
    url = url.strip()
    scheme = _SCHEME.match(url)
    if scheme is None:
        data = _decoded(url)
        if data is not None and _is_file(data):
            return data
        message = "the URL must begin with data: or https:, or be the base64 of a picture"
        raise BadBody(400, "invalid_value", message, param)
    name = scheme[1].lower()
    if name == "data":
        return _from_data_url(url, param)
    if name in _HINTS:
        raise BadBody(400, "url_not_allowed", _HINTS[name], param)
    return fetch(url, param)


def from_base64(text: str, param: str) -> bytes:
    """The bytes of a text in base64: in lines, of either alphabet, with or without padding.

    A data URL is taken too. What is not in the standard form must give a file that is known.

    Raises:
        BadBody: it is no base64; the message says what is wrong.
    """
    text = text.strip()
    if text[:5].lower() == "data:":
        return _from_data_url(text, param)
    return _from_base64(text, param)


def _from_data_url(url: str, param: str) -> bytes:
    head, comma, _ = url[:_HEAD].partition(",")
    if not comma:
        message = "the data URL has no comma between its type and its base64"
        raise BadBody(400, "invalid_value", message, param)
    if "base64" not in [part.strip().lower() for part in head.split(";")[1:]]:
        message = "the data URL must hold base64: ;base64 before the comma"
        raise BadBody(400, "invalid_value", message, param)
    return _from_base64(url[len(head) + 1 :], param)


def _from_base64(text: str, param: str) -> bytes:
    standard = _strict(text)
    if standard is not None:
        return standard
    data = _decoded(text)
    if data is not None and _is_file(data):
        return data
    reason = _fault(text)
    raise BadBody(400, "invalid_base64", f"the image is not valid base64: {reason}", param)


def _strict(text: str) -> bytes | None:
    """The bytes of standard base64; None if it is none."""
    # To translate a text that is not ASCII takes a hundred times as long.
    if not text.isascii():
        return None
    try:
        # `base64 FILE` wraps its lines; any other character outside the alphabet is an error.
        return base64.b64decode(text.translate(_WHITESPACE), validate=True)
    except (binascii.Error, ValueError):
        return None


def _decoded(text: str) -> bytes | None:
    """The bytes of base64 in any form that has one meaning."""
    if not text.isascii():
        return None
    text = _unescaped(text).translate(_WHITESPACE).translate(_URL_SAFE).rstrip("=")
    return _strict(text + "=" * (-len(text) % 4))


def _unescaped(text: str) -> str:
    """The text with those characters of base64 and line ends that a URL would escape."""
    if "%" in text:
        # A general decoder would take a second for each million of escapes.
        for escape, character in _ESCAPES.items():
            text = text.replace(escape, character).replace(escape.lower(), character)
    return text


def _is_file(data: bytes) -> bool:
    return format_of(data) is not None or unread_name(data) is not None


def _fault(text: str) -> str:
    """Why a text is no base64; nothing of it is repeated but the place."""
    if re.match(r"b?['\"]", text):
        return "it is quoted, as Python shows bytes; send their decoded text"
    plain = _unescaped(text).translate(_WHITESPACE) if text.isascii() else text
    strange = re.search(r"[^A-Za-z0-9+/\-_=]", plain)
    if strange is not None:
        return f"character {strange.start() + 1} is not of its alphabet"
    letters = plain.rstrip("=")
    if "=" in letters:
        return f"there is padding at character {letters.index('=') + 1}, before its end"
    return f"its {len(letters)} characters are cut short or lack their padding"

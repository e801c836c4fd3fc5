"""Names of files, which may hold anything, for readers who expect text."""

from __future__ import annotations


def utf8(name: str) -> str:
    """The name as valid Unicode: bytes that are no UTF-8 become codes, unlike those of others."""
    return name.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """The text with codes for line ends and for whatever else a terminal would obey."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()

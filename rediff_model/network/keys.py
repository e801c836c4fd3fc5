"""API keys as files, variables and clipboards hold them."""

from __future__ import annotations

import unicodedata

BYTE_ORDER_MARK = "\ufeff"


class KeyTextError(ValueError):
    """Text that no key can be; the message is one line without the text."""


def clean_key(text: str) -> str:
    """The key without white space, line ends and a byte order mark around it; may be empty.

    Raises:
        KeyTextError: it holds a character that no HTTP header can, named by its place and code.
    """
    key = text.strip().strip(BYTE_ORDER_MARK).strip()
    for place, character in enumerate(key, 1):
        if not "!" <= character <= "~":
            code = f"U+{ord(character):04X}"
            name = unicodedata.name(character, "")
            raise KeyTextError(
                f"character {place} of the key is {code}{f' ({name})' if name else ''}, "
                "and a key has visible ASCII characters only"
            )
    return key

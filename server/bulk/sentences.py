"""Where sentences end in a caption that was cut off."""

from __future__ import annotations

import re
from typing import Final

_CLOSING: Final = r"""["')\]\u2019\u201d\u00bb]*"""
_OPENING: Final = r"""["'(\[\u2018\u201c\u00ab]*"""
_END: Final = re.compile(
    rf"(?P<word>[^\s.!?]*)(?P<mark>[.!?\u2026]+){_CLOSING}(?=\s+{_OPENING}[^\sa-z]|\s*$)"
    r"|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d\uff09]*"
)
"""A mark and what closes behind it, unless the text continues in small letters; CJK marks."""
_SHORT: Final = frozenset(("mr", "mrs", "ms", "dr", "prof", "st", "vs"))
"""Words whose full stop ends no sentence, as after single capitals."""


def full_sentences(text: str) -> str:
    """The text up to the end of its last full sentence; all of it if there is none."""
    ends = [match.end() for match in _END.finditer(text) if not _is_abbreviation(match)]
    return text[: ends[-1]] if ends else text


def _is_abbreviation(match: re.Match[str]) -> bool:
    word = match["word"]
    if word is None or match["mark"] != ".":
        return False
    return word.lower() in _SHORT or (len(word) == 1 and word.isupper())

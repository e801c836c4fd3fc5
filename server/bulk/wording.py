"""How captions are written: full sentences of those that were cut off, and words around them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

CUT_OFF = "length"
"""The finish reason of a caption that was longer than its canvas."""
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


@dataclass(frozen=True, slots=True)
class Wording:
    """How a caption is written: `trigger, prepend caption append`."""

    prepend: str = ""
    append: str = ""
    trigger: str = ""
    full_sentences: bool = False
    """Captions that were cut off end at their last full sentence."""

    def around(self, text: str, finish_reason: str) -> str:
        """The text as it is written; only the trigger brings a comma of its own."""
        if self.full_sentences and finish_reason == CUT_OFF:
            text = full_sentences(text)
        lead = f"{self.trigger}, " if self.trigger else ""
        return f"{lead}{self.prepend}{text}{self.append}"

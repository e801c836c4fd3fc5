"""What changed between two texts, word by word."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Literal, NamedTuple


class Change(NamedTuple):
    """Words of the first text, and what stands in their place in the second."""

    kind: Literal["equal", "replace", "insert", "delete"]
    was: str
    text: str


def word_diff(before: str, after: str) -> list[Change]:
    """The shortest runs of words that turn one text into the other, equal ones included.

    Words are split at white space and joined with single spaces.
    """
    old, new = before.split(), after.split()
    # Without the heuristic for long texts, by which common words count as no match.
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    return [
        Change(kind, " ".join(old[a:b]), " ".join(new[c:d]))
        for kind, a, b, c, d in matcher.get_opcodes()
    ]

"""The words that captions of sticker scenes are written with."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from training.stickers.templates import (
    OPENING_TEMPLATES,
    RELATION_TEMPLATES,
    SIZED_TEMPLATES,
    STICKER_TEMPLATES,
    SURFACES,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WORD = re.compile(r"[^\s.,]+")


def unknown_words(text: str, names: Sequence[str]) -> list[str]:
    """The words of a caption that the grammar never writes, in order; case does not matter.

    `names` are the class names that the grammar knows.
    """
    known = _known(tuple(names))
    return [word for word in _WORD.findall(text) if word.lower() not in known]


@cache
def _known(names: tuple[str, ...]) -> frozenset[str]:
    openings = (
        template for templates in OPENING_TEMPLATES + SIZED_TEMPLATES for template in templates
    )
    templates = (*openings, *STICKER_TEMPLATES, *RELATION_TEMPLATES)
    fixed = (words for template in templates for part in template.parts for words in part.words)
    values = (
        phrase
        for by_value in SURFACES.values()
        for phrases in by_value.values()
        for phrase in _each(phrases)
    )
    return frozenset(
        word.lower() for text in (*fixed, *values, *names) for word in _WORD.findall(text)
    )


def _each(phrases: str | Iterable[str]) -> Iterable[str]:
    return (phrases,) if isinstance(phrases, str) else phrases

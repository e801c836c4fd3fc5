"""Tokens and words of a caption, with how sure the model is of them."""

from __future__ import annotations

import re
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Word(NamedTuple):
    """A word of a text, its characters `start` to `end` (exclusive)."""

    text: str
    start: int
    end: int
    confidence: float
    """The lowest of its tokens'."""


def token_texts(ids: tuple[int, ...], decode: Callable[[tuple[int, ...]], str]) -> list[str]:
    """The text that each token adds; together they are the caption.

    A token that ends inside a character adds nothing; the one that completes it adds it all.
    """
    texts, so_far = [], ""
    for count in range(1, len(ids) + 1):
        whole = decode(ids[:count])
        if whole.endswith("\ufffd") and count < len(ids):
            whole = so_far
        texts.append(whole[len(so_far) :])
        so_far = whole
    return texts


def words(texts: Sequence[str], confidences: Sequence[float]) -> list[Word]:
    """The words of a caption, split at white space. `texts` and `confidences` are its tokens'."""
    spans = list(pairwise(accumulate(map(len, texts), initial=0)))
    return [
        Word(
            match.group(),
            match.start(),
            match.end(),
            min(
                confidence
                for (begin, end), confidence in zip(spans, confidences, strict=True)
                if begin < match.end() and end > match.start()
            ),
        )
        for match in re.finditer(r"\S+", "".join(texts))
    ]

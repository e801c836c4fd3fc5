"""Whether the confidence of a word says how likely it is to be wrong.

A word is wrong if it states something that is false of the scene, or lies in a sentence that the
grammar does not accept. Of what is said about a sticker that is not there, its name is wrong and
nothing else; of a false relation, the words of the relation and both names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from training.stickers.parse import AttributeFact, ObjectFact, RelationFact, parse
from training.stickers.score import facts_of, same

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rediff_model.words import Word
    from training.stickers.graph import Scene
    from training.stickers.parse import Fact

BINS = 10


class Judged(NamedTuple):
    """A word's confidence, and whether the word is wrong."""

    confidence: float
    wrong: bool


@dataclass(frozen=True, slots=True)
class Bin:
    """Words of like confidence: how many, their mean confidence, and the share that is right."""

    words: int
    confidence: float
    right: float


def judge_words(
    scene: Scene, text: str, words: Sequence[Word], names: Sequence[str]
) -> list[Judged]:
    """Every word of a caption with whether it is wrong. `names` are those the grammar knows."""
    spans = list(_wrong_spans(scene, text, names))
    return [
        Judged(word.confidence, any(word.start < end and start < word.end for start, end in spans))
        for word in words
    ]


def _wrong_spans(scene: Scene, text: str, names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Characters start to end (exclusive) of what is wrong."""
    true = facts_of(scene)
    present = {sticker.name for sticker in scene.stickers}
    for sentence in parse(text, names):
        start = sentence.start
        if sentence.facts is None:
            yield start, start + len(sentence.text)
            continue
        for fact in sentence.facts:
            if same(fact) in true or _about_nothing(fact, present):
                continue
            for form in _forms(fact):
                if form in sentence.spans:
                    begin, end = sentence.spans[form]
                    yield start + begin, start + end


def _about_nothing(fact: Fact, present: set[str]) -> bool:
    """Whether an attribute is of a sticker that is not there."""
    return isinstance(fact, AttributeFact) and fact.name not in present


def _forms(fact: Fact) -> tuple[str, ...]:
    """The placeholders that state a fact."""
    if isinstance(fact, AttributeFact):
        return (fact.attribute,)
    if isinstance(fact, ObjectFact):
        return ("name",)
    if isinstance(fact, RelationFact):
        return ("subject", "object", "relation", "side", "comparison")
    kind = type(fact).__name__.removesuffix("Fact").lower()
    size = getattr(fact, "size", "any")
    return (kind if size == "any" else size,)


def auroc(judged: Sequence[Judged]) -> float | None:
    """The chance that a wrong word has a lower confidence than a right one, ties counted half; None
    without words of both kinds."""
    confidence_N = np.array([word.confidence for word in judged])
    wrong_N = np.array([word.wrong for word in judged], dtype=bool)
    wrong, right = int(wrong_N.sum()), int((~wrong_N).sum())
    if not wrong or not right:
        return None
    _, inverse_N, counts_U = np.unique(confidence_N, return_inverse=True, return_counts=True)
    rank_U = np.cumsum(counts_U) - (counts_U - 1) / 2
    above = float(rank_U[inverse_N][~wrong_N].sum()) - right * (right + 1) / 2
    return above / (wrong * right)


def reliability(judged: Sequence[Judged], bins: int = BINS) -> list[Bin]:
    """Words by their confidence in so many ranges of equal width from 0 to 1; empty ones are left
    out."""
    ranges: list[list[Judged]] = [[] for _ in range(bins)]
    for word in judged:
        ranges[min(bins - 1, int(word.confidence * bins))].append(word)
    return [
        Bin(
            words=len(part),
            confidence=sum(word.confidence for word in part) / len(part),
            right=sum(not word.wrong for word in part) / len(part),
        )
        for part in ranges
        if part
    ]

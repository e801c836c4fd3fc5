"""BLEU, ROUGE-L and CIDEr-D of captions against references, as the COCO caption tools define them.

Papineni et al. 2002, Lin 2004 and Vedantam et al. 2015 (arXiv 1411.5726). All take tokens.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

ORDERS: Final = 4
"""N-grams of one to four tokens."""

Tokens = tuple[str, ...]

_TOKEN: Final = re.compile(r"\d+(?:[.,:]\d+)+|[^\W_]+(?:[-'][^\W_]+)*")
_CONTRACTION: Final = re.compile(r"(.+?)(n't|'(?:s|m|d|ll|re|ve))")
_TINY, _SMALL = 1e-15, 1e-9
_BETA: Final = 1.2
_SIGMA: Final = 6.0


def tokens(text: str) -> Tokens:
    """Lower-cased words without punctuation, contractions split: "it's" is "it" and "'s".

    Close to the Penn Treebank tokeniser that the COCO tools run in Java; equal where a text has
    neither abbreviations nor rare punctuation.
    """
    found: list[str] = []
    for match in _TOKEN.finditer(text.lower().replace("\u2019", "'")):
        split = _CONTRACTION.fullmatch(match[0])
        found += [match[0]] if split is None else split.groups()
    return tuple(found)


def bleu_counts(candidate: Tokens, references: Sequence[Tokens]) -> np.ndarray:
    """What BLEU sums over captions: right and guessed n-grams by order, and both lengths, [10].

    Right n-grams count as often as one reference has them. The reference's length is the closest
    one, the shorter of two.
    """
    counts = np.zeros(2 * ORDERS + 2)
    for order in range(1, ORDERS + 1):
        own = _ngrams(candidate, order)
        most: Counter[Tokens] = Counter()
        for reference in references:
            most |= _ngrams(reference, order)
        counts[order - 1] = (own & most).total()
        counts[ORDERS + order - 1] = own.total()
    length = len(candidate)
    counts[-2] = length
    counts[-1] = min(map(len, references), key=lambda size: (abs(size - length), size))
    return counts


def bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 of summed or mean counts of `bleu_counts`, [4]."""
    right, guessed = counts[:ORDERS], counts[ORDERS : 2 * ORDERS]
    precision = np.cumprod((right + _TINY) / (guessed + _SMALL))
    scores = precision ** (1 / np.arange(1, ORDERS + 1))
    ratio = (counts[-2] + _TINY) / (counts[-1] + _SMALL)
    return scores * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    """F-score, beta 1.2, of the longest common subsequence; best precision and best recall are
    taken over the references separately."""
    common = [_common(candidate, reference) for reference in references]
    precision = max(common) / len(candidate) if candidate else 0.0
    recall = max(
        size / len(reference) if reference else 0.0
        for size, reference in zip(common, references, strict=True)
    )
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """CIDEr-D of every caption, 0 to 10; n-grams weigh by how few pictures' references have them.

    A set of one picture scores 0. A caption much longer or shorter than its references scores
    close to 0: on dense captions that term outweighs all others.
    """
    frequency: Counter[Tokens] = Counter()
    for each in references:
        frequency.update({gram for reference in each for gram in _all_ngrams(reference)})
    pictures = math.log(len(references)) if references else 0.0

    def vectors(sentence: Tokens) -> tuple[list[dict[Tokens, float]], list[float], int]:
        weighted: list[dict[Tokens, float]] = [{} for _ in range(ORDERS)]
        for gram, count in _all_ngrams(sentence).items():
            weighted[len(gram) - 1][gram] = count * (pictures - math.log(max(1, frequency[gram])))
        norms = [math.sqrt(sum(value**2 for value in part.values())) for part in weighted]
        return weighted, norms, max(0, len(sentence) - 1)

    scores = []
    for candidate, several in zip(candidates, references, strict=True):
        own, own_norms, own_length = vectors(candidate)
        total = 0.0
        for reference in several:
            theirs, norms, length = vectors(reference)
            penalty = math.exp(-((own_length - length) ** 2) / (2 * _SIGMA**2))
            for part, other, norm, other_norm in zip(own, theirs, own_norms, norms, strict=True):
                if norm and other_norm:
                    dot = sum(
                        min(value, other[gram]) * other[gram]
                        for gram, value in part.items()
                        if gram in other
                    )
                    total += penalty * dot / (norm * other_norm)
        scores.append(10 * total / (ORDERS * len(several)))
    return scores


def _ngrams(sentence: Tokens, order: int) -> Counter[Tokens]:
    return Counter(sentence[i : i + order] for i in range(len(sentence) - order + 1))


def _all_ngrams(sentence: Tokens) -> Counter[Tokens]:
    return sum((_ngrams(sentence, order) for order in range(1, ORDERS + 1)), Counter[Tokens]())


def _common(first: Tokens, second: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            diagonal, row[place] = (
                row[place],
                diagonal + 1 if word == other else max(row[place], row[place - 1]),
            )
    return row[-1]

"""Scores of captions without a judge: against references, and what can be seen in the text alone.

Broken captions show first in the text: words doubled, phrases repeated, special tokens left over.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from training.evaluation.intervals import intervals
from training.evaluation.ngrams import (
    ORDERS,
    bleu,
    bleu_counts,
    cider_d,
    rouge_l,
    tokens,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from training.evaluation.intervals import Interval
    from training.evaluation.ngrams import Tokens

_SPECIAL: Final = re.compile(
    r"<\|[^|<>]{1,40}\|>|</?(?:s|unk|pad|mask|image|eos|bos)>|\[/?(?:MASK|PAD|UNK|CLS|SEP|INST)\]"
)
"""Tokens that only a model's own template or canvas has."""


def text_figures(captions: Sequence[str]) -> dict[str, Interval]:
    """Figures of the captions alone.

    `words` is the mean length. `empty`, `leaking` (holds a special token) and `doubled` (a word
    twice in a row) are shares of the captions; `repeated_N` is the mean share of a caption's
    N-grams that it has had before.

    Raises:
        ValueError: there is no caption.
    """
    rows = [[*_faults(caption, tokens(caption))] for caption in captions]
    names = ("words", "empty", "leaking", "doubled", *(f"repeated_{n + 1}" for n in range(ORDERS)))
    return dict(zip(names, intervals(np.array(rows, dtype=float)), strict=True))


def reference_figures(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, Interval]:
    """BLEU, ROUGE-L and CIDEr-D over all pictures that have references.

    A picture without a caption counts as one with an empty caption. BLEU is that of the whole set;
    of CIDEr-D the intervals keep the weights of the whole set.

    Raises:
        ValueError: there is no reference, or a picture has an empty list of them.
    """
    if bare := next((key for key, several in references.items() if not several), None):
        raise ValueError(f"{bare} has no reference")
    own = [tokens(captions.get(key, "")) for key in references]
    theirs = [[tokens(text) for text in several] for several in references.values()]
    pairs = list(zip(own, theirs, strict=True))
    counts_NK = np.array([bleu_counts(*pair) for pair in pairs])
    other_NK = np.array([[rouge_l(*pair) for pair in pairs], cider_d(own, theirs)]).T
    names = [f"bleu_{order + 1}" for order in range(ORDERS)]
    figures = dict(zip(names, intervals(counts_NK, bleu), strict=True))
    return figures | dict(zip(("rouge_l", "cider_d"), intervals(other_NK), strict=True))


def _faults(text: str, words: Tokens) -> list[float]:
    doubled = any(one == two for one, two in pairwise(words))
    repeated = []
    for order in range(1, ORDERS + 1):
        grams = [words[i : i + order] for i in range(len(words) - order + 1)]
        repeated.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return [len(words), not text.strip(), _SPECIAL.search(text) is not None, doubled, *repeated]

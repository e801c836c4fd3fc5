"""Confidences in OpenAI's shape: a token's logarithm of its probability."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.api.schemas import Candidate

_IMPOSSIBLE: Final = -9999.0
"""What OpenAI says for a probability of 0."""


def logprobs_of(
    texts: Sequence[str],
    confidences: Sequence[float],
    alternatives: Sequence[Sequence[Candidate]],
    begin: int,
    end: int,
) -> dict[str, Any]:
    """The `logprobs` of a choice whose content is characters `begin` to `end` of the joined texts.

    A token's confidence is its probability when it was last written or confirmed, and its
    alternatives are the likeliest tokens of that moment.
    """
    content = []
    spans = pairwise(accumulate(map(len, texts), initial=0))
    for (first, last), text, confidence, found in zip(
        spans, texts, confidences, alternatives, strict=False
    ):
        if max(first, begin) >= min(last, end) and not begin <= first == last < end:
            continue
        shown = text[max(0, begin - first) : end - first]
        top = [_entry(one.text, one.confidence) for one in found]
        content.append(_entry(shown, confidence) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def _entry(text: str, confidence: float) -> dict[str, Any]:
    return {
        "token": text,
        "logprob": round(math.log(confidence), 6) if confidence > 0 else _IMPOSSIBLE,
        "bytes": list(text.encode()),
    }

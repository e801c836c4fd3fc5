"""Confidences in OpenAI's shape: a token's logarithm of its probability."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_IMPOSSIBLE: Final = -9999.0
"""What OpenAI says for a probability of 0."""


def logprobs_of(
    texts: Sequence[str], confidences: Sequence[float], begin: int, end: int, top: int
) -> dict[str, Any]:
    """The `logprobs` of a choice whose content is characters `begin` to `end` of the joined texts.

    A token's confidence is its probability when it was last written or confirmed. Alternatives
    are not kept: with `top` above 0 the token itself is the only one of `top_logprobs`.
    """
    content = []
    spans = pairwise(accumulate(map(len, texts), initial=0))
    for (first, last), text, confidence in zip(spans, texts, confidences, strict=True):
        if max(first, begin) >= min(last, end) and not begin <= first == last < end:
            continue
        shown = text[max(0, begin - first) : end - first]
        entry = {
            "token": shown,
            "logprob": round(math.log(confidence), 6) if confidence > 0 else _IMPOSSIBLE,
            "bytes": list(shown.encode()),
        }
        content.append(entry | {"top_logprobs": [entry] if top else []})
    return {"content": content, "refusal": None}

"""Logprobs of the part of a caption that is sent."""

from __future__ import annotations

import math

from server.api.logprobs import logprobs_of
from server.api.schemas import Candidate

TEXTS = [" two", "", " red", "!\n"]
SURE = [0.5, 0.25, 1.0, 0.0]


def tokens(begin: int, end: int) -> list[tuple[str, float]]:
    found = logprobs_of(TEXTS, SURE, [[]] * len(TEXTS), begin, end)["content"]
    return [(one["token"], one["logprob"]) for one in found]


def test_tokens_are_cut_to_what_is_sent() -> None:
    half, quarter = round(math.log(0.5), 6), round(math.log(0.25), 6)
    assert tokens(0, 10) == [(" two", half), ("", quarter), (" red", 0.0), ("!\n", -9999.0)]
    assert tokens(1, 9) == [("two", half), ("", quarter), (" red", 0.0), ("!", -9999.0)]
    assert tokens(1, 4) == [("two", half)]
    assert tokens(4, 6) == [("", quarter), (" r", 0.0)]
    assert tokens(6, 6) == []


def test_alternatives_are_told_as_they_are() -> None:
    found = [
        Candidate(id=4, text="\u00e9", confidence=1.0),
        Candidate(id=7, text=" e", confidence=0.0),
    ]
    [one] = logprobs_of(["\u00e9"], [1.0], [found], 0, 1)["content"]
    same, other = one.pop("top_logprobs")
    assert one == {"token": "\u00e9", "logprob": 0.0, "bytes": [195, 169]} == same
    assert other == {"token": " e", "logprob": -9999.0, "bytes": [32, 101]}
    assert math.copysign(1, one["logprob"]) == 1


def test_no_text_has_no_tokens() -> None:
    assert logprobs_of([], [], [], 0, 0) == {"content": [], "refusal": None}

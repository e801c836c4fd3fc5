"""Logprobs of the part of a caption that is sent."""

from __future__ import annotations

import math

import pytest

from server.api.logprobs import logprobs_of

TEXTS = [" two", "", " red", "!\n"]
SURE = [0.5, 0.25, 1.0, 0.0]


def tokens(begin: int, end: int) -> list[tuple[str, float]]:
    found = logprobs_of(TEXTS, SURE, begin, end, 0)["content"]
    return [(one["token"], one["logprob"]) for one in found]


def test_tokens_are_cut_to_what_is_sent() -> None:
    half, quarter = round(math.log(0.5), 6), round(math.log(0.25), 6)
    assert tokens(0, 10) == [(" two", half), ("", quarter), (" red", 0.0), ("!\n", -9999.0)]
    assert tokens(1, 9) == [("two", half), ("", quarter), (" red", 0.0), ("!", -9999.0)]
    assert tokens(1, 4) == [("two", half)]
    assert tokens(4, 6) == [("", quarter), (" r", 0.0)]
    assert tokens(6, 6) == []


@pytest.mark.parametrize("top", [0, 1, 20])
def test_a_token_is_its_own_only_alternative(top: int) -> None:
    [one] = logprobs_of(["\u00e9"], [1.0], 0, 1, top)["content"]
    alternatives = one.pop("top_logprobs")
    assert one == {"token": "\u00e9", "logprob": 0.0, "bytes": [195, 169]}
    assert alternatives == [one] * (top > 0)
    assert math.copysign(1, one["logprob"]) == 1


def test_no_text_has_no_tokens() -> None:
    assert logprobs_of([], [], 0, 0, 1) == {"content": [], "refusal": None}

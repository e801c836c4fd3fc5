"""What changed between two texts, word by word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.word_diff import word_diff


def test_words_are_kept_replaced_added_and_left_out() -> None:
    assert word_diff("There are two blue  cats here", "There are three\ncats and dogs here") == [
        ("equal", "There are", "There are"),
        ("replace", "two blue", "three"),
        ("equal", "cats", "cats"),
        ("insert", "", "and dogs"),
        ("equal", "here", "here"),
    ]
    assert word_diff("a b", "b") == [("delete", "a", ""), ("equal", "b", "b")]
    assert word_diff(" ", "") == []


texts = st.text(alphabet="ab \n", max_size=300)


@given(texts, texts)
def test_both_texts_are_in_the_parts(before: str, after: str) -> None:
    parts = word_diff(before, after)
    assert " ".join(one.was for one in parts if one.was).split() == before.split()
    assert " ".join(one.text for one in parts if one.text).split() == after.split()
    assert all((one.kind == "equal") == (one.was == one.text) for one in parts)

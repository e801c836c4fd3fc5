"""Wordings of the request, for training and for evaluation."""

import numpy as np

from rediff_model.chat_template import DEFAULT_QUESTION
from training.stickers.prompts import HELD_OUT, draw_prompt


def drawn(seed: int, count: int = 4000) -> list[str]:
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        question = draw_prompt(rng)
        last = question[-1]
        assert not isinstance(last, str)
        texts.append((last.text + (last.after or "")).strip())
    return texts


def test_thirty_wordings_are_kept_for_evaluation() -> None:
    assert len(set(HELD_OUT)) == 30
    letters = {"".join(filter(str.isalpha, text.lower())) for text in HELD_OUT}
    seen = {
        "".join(filter(str.isalpha, text.lower()))
        for text in drawn(0) + drawn(1)
        if text != DEFAULT_QUESTION
    }
    assert not letters & seen


def test_training_sees_many_wordings() -> None:
    texts = drawn(2)
    assert len(set(texts)) > 2500
    assert texts.count(DEFAULT_QUESTION) > 200
    assert any(text.isupper() for text in texts)
    assert any(text[0].islower() for text in texts)
    assert any(text.endswith(".") for text in texts)


def test_some_have_a_system_message_or_the_text_before_the_picture() -> None:
    rng = np.random.default_rng(3)
    questions = [draw_prompt(rng) for _ in range(400)]
    assert 30 < sum(len(question) == 2 for question in questions) < 100
    assert 50 < sum(bool(question[-1].text) for question in questions) < 120  # type: ignore[union-attr]


def test_a_seed_gives_the_same_wordings() -> None:
    assert drawn(4, 50) == drawn(4, 50)

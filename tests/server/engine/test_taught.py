"""What a model is asked: one that lists the prompts it was taught, and one that takes any text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_fakes import INFO

from rediff_model.chat_template import DEFAULT_QUESTION, Question, Turn, turn_with_picture
from server.engine.taught import ONE_QUESTION, REPLACED, Asked, suited, text_of

TAUGHT = replace(INFO, taught_prompts=("What is it?\n", DEFAULT_QUESTION))


@pytest.mark.parametrize("question", ["caption this", "Describe this image.", " Why? "])
def test_a_model_without_a_list_takes_any_text(question: str) -> None:
    turns = (turn_with_picture("", question), Turn("assistant", "A."), Turn("user", "B?"))
    assert suited(INFO, question) == Asked(question)
    assert suited(INFO, turns) == Asked(turns)


@pytest.mark.parametrize("question", [None, "", " \n"])
def test_no_text_is_the_default_prompt(question: str | None) -> None:
    assert suited(INFO, question) == Asked(None)
    assert suited(TAUGHT, question) == Asked(None)
    other = replace(INFO, taught_prompts=("Say.", "Tell."))
    assert suited(other, question) == Asked("Say.")


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        (DEFAULT_QUESTION, Asked(DEFAULT_QUESTION)),
        (f"\n {DEFAULT_QUESTION}\t", Asked(DEFAULT_QUESTION)),
        ("What is it?", Asked("What is it?\n")),
        ("What is it", Asked(None, (REPLACED,))),
        (DEFAULT_QUESTION.removesuffix("."), Asked(None, (REPLACED,))),
        (DEFAULT_QUESTION.lower(), Asked(None, (REPLACED,))),
        ((turn_with_picture("What is it?", ""),), Asked("What is it?\n")),
        ((turn_with_picture("", ""),), Asked(None)),
        ((turn_with_picture("", "caption this"),), Asked(None, (REPLACED,))),
        (
            (Turn("system", "Be brief."), turn_with_picture("", DEFAULT_QUESTION)),
            Asked(DEFAULT_QUESTION, (ONE_QUESTION,)),
        ),
        (
            (turn_with_picture("", "A?"), Turn("assistant", "B."), Turn("user", "And C?")),
            Asked(None, (ONE_QUESTION, REPLACED)),
        ),
    ],
)
def test_a_model_with_a_list_is_asked_what_it_was_taught(question: Question, asked: Asked) -> None:
    assert suited(TAUGHT, question) == asked


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        (None, Asked(None)),
        (" caption this", Asked(" caption this")),
        ((turn_with_picture("", " "),), Asked(None)),
        ((turn_with_picture("Caption this.", ""),), Asked("Caption this.")),
        (
            (Turn("system", "Be brief."), turn_with_picture("", "Why?")),
            Asked("Why?", (ONE_QUESTION,)),
        ),
        (
            (turn_with_picture("", "A?"), Turn("assistant", "B."), Turn("user", "And C?")),
            Asked("And C?", (ONE_QUESTION,)),
        ),
    ],
)
def test_a_model_of_single_questions_is_asked_the_last_one(
    question: Question | None, asked: Asked
) -> None:
    assert suited(replace(INFO, single_question=True), question) == asked


@pytest.mark.parametrize(
    ("turns", "asked"),
    [
        ((turn_with_picture("", " "),), None),
        (
            (Turn("system", "A"), turn_with_picture("", "")),
            (Turn("system", "A"), turn_with_picture("", DEFAULT_QUESTION)),
        ),
        (
            (turn_with_picture("", "A"), Turn("assistant", "B"), Turn("user", " ")),
            (turn_with_picture("", "A"), Turn("assistant", "B"), Turn("user", DEFAULT_QUESTION)),
        ),
    ],
)
def test_a_last_turn_without_text_asks_the_default_prompt(
    turns: Question, asked: Question | None
) -> None:
    assert suited(INFO, turns) == Asked(asked)


def test_warnings_can_stand_in_a_header() -> None:
    for warning in (ONE_QUESTION, REPLACED):
        assert warning.isascii()
        assert warning.isprintable()


def test_all_texts_of_a_question_count_for_its_length() -> None:
    assert text_of(None) == ""
    assert text_of("Why?") == "Why?"
    turns = (Turn("system", "A"), turn_with_picture("B ", "\nC"), Turn("assistant", "D"))
    assert text_of(turns) == "A\nB \nC\nD"

"""What a model is asked: the caller's words, or a question that it was taught."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rediff_model.chat_template import DEFAULT_QUESTION, Turn, turn_with_picture

if TYPE_CHECKING:
    from rediff_model.chat_template import Question
    from server.engine.request import ModelInfo

REPLACED: Final = (
    "the model was not taught this prompt: it was asked its default prompt instead"
    " (/version lists taught_prompts)"
)
ONE_QUESTION: Final = (
    "the model was taught single questions: system messages and earlier turns were left out"
)


class Asked(NamedTuple):
    """A question that suits the model."""

    question: Question | None
    """None is `DEFAULT_QUESTION`."""
    warnings: tuple[str, ...] = ()
    """How it differs from what the caller asked, in ASCII."""


def suited(model: ModelInfo, question: Question | None) -> Asked:
    """The question as it is, or what a model that lists the prompts it was taught is asked instead.

    Such a model is asked the last user's text, if that is one of its prompts up to white space
    around it, else its default prompt. A model that was taught single questions is asked the last
    user's text, whatever it is. A blank text is the default prompt.
    """
    if isinstance(question, str) and not question.strip():
        question = None
    taught = model.taught_prompts
    if not taught and not (model.single_question and isinstance(question, tuple)):
        return Asked(_with_text(question))
    usual = None if not taught or DEFAULT_QUESTION in taught else taught[0]
    warnings = []
    if isinstance(question, tuple):
        if len(question) > 1:
            warnings.append(ONE_QUESTION)
        question = question[-1].text + (question[-1].after or "")
    if question is None or not (text := question.strip()):
        return Asked(usual, tuple(warnings))
    if not taught:
        return Asked(text, tuple(warnings))
    for prompt in taught:
        if prompt.strip() == text:
            return Asked(prompt, tuple(warnings))
    return Asked(usual, (*warnings, REPLACED))


def _with_text(question: Question | None) -> Question | None:
    """The question, with the default prompt in a last turn without text."""
    if not isinstance(question, tuple) or text_of(question[-1:]).strip():
        return question
    last = question[-1]
    if len(question) == 1 and last.after is not None:
        return None
    text = turn_with_picture("", DEFAULT_QUESTION) if last.after is not None else None
    return (*question[:-1], text or Turn(last.role, DEFAULT_QUESTION))


def text_of(question: Question | None) -> str:
    """All that a question says, for limits on its length."""
    if question is None or isinstance(question, str):
        return question or ""
    return "\n".join(turn.text + (turn.after or "") for turn in question)

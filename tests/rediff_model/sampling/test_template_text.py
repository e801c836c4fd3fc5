"""Templates as text: what is read, what is refused and where, and their tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rediff_model.sampling.params import SamplerSettings, SettingsError
from rediff_model.sampling.template import Choices, Masks, Template
from rediff_model.sampling.template_text import Hole, TemplateError, Text, parse


class Words:
    """A tokenizer of words with the space before them; it does not know `§`."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def encode(self, text: str) -> tuple[int, ...]:
        words = [word for word in text.replace(" ", "\0 ").replace(".", "\0.").split("\0") if word]
        words = [word.replace("§", "") for word in words]
        self.known += [word for word in words if word not in self.known]
        return tuple(map(self.known.index, words))

    def decode(self, ids: tuple[int, ...]) -> str:
        return "".join(self.known[token] for token in ids)


def encoded(source: str, most: int = 99, most_passes: int = 99, *, spaced: bool = True) -> Template:
    words = Words()
    return parse(source).encode(
        words.encode, words.decode, spaced=spaced, most=most, most_passes=most_passes
    )


def test_text_and_holes_are_read_in_their_order() -> None:
    source = "A {{b}} of { 8 }, {plain| dark red }{2}}}"
    assert parse(source).pieces == (
        Text(0, "A {b} of "),
        Hole(11, tokens=8),
        Text(16, ", "),
        Hole(18, choices=("plain", "dark red")),
        Hole(36, tokens=2),
        Text(39, "}"),
    )
    assert len(parse(source).holes) == 3


@pytest.mark.parametrize(
    ("source", "reason", "at"),
    [
        ("", "there is no hole", 0),
        ("only text", "there is no hole", 9),
        ("a {} b", "the hole is empty", 2),
        ("a {  } b", "the hole is empty", 2),
        ("a {3", "the hole is not closed", 2),
        ("a {3 {4}}", "a hole cannot hold another", 5),
        ("a {x|{{y}", "a hole cannot hold another", 5),
        ("a } b {2}", "} closes no hole", 2),
        ("{2} a }", "} closes no hole", 6),
        ("a {0}", "a hole has 1 token or more", 2),
        ("a {000}", "a hole has 1 token or more", 2),
        ("a {-3}", "a hole has 1 token or more", 2),
        ("a {red}", "a hole is a number of tokens, or at least two choices", 2),
        ("a {2.5}", "a hole is a number of tokens, or at least two choices", 2),
        ("a {\u0663}", "a hole is a number of tokens, or at least two choices", 2),
        ("a {red|}", "a choice is empty", 7),
        ("a {| red}", "a choice is empty", 3),
        ("a {red|blue| red}", "the choice 'red' is there twice", 13),
        ("a {" + "|".join(map(str, range(65))) + "}", "a hole has 64 choices at most", 185),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(source: str, reason: str, at: int) -> None:
    with pytest.raises(TemplateError) as caught:
        parse(source)
    first, shown, caret = str(caught.value).split("\n")
    assert first == f"template: {reason}, at character {at + 1}:" or reason in first
    assert caught.value.at == at
    assert f"at character {at + 1}" in first
    # The caret stands below the place.
    place = len(caret) - 1
    assert caret == " " * place + "^"
    assert (shown + "\n")[place] == (source + "\n")[at] or shown[place:] in ("", "…")


def test_a_long_template_is_shown_around_the_place() -> None:
    source = "word\n" * 20 + "{0}" + " word" * 20
    with pytest.raises(TemplateError) as caught:
        parse(source)
    _, shown, caret = str(caught.value).split("\n")
    assert (shown[0], shown[-1]) == ("…", "…")
    assert len(shown) < 80
    assert shown[len(caret) - 1 :].startswith("{0}")


@given(st.text(alphabet="{}| a1é\n", max_size=30))
def test_any_text_is_read_or_refused_within_it(source: str) -> None:
    refused: TemplateError | None = None
    try:
        template = parse(source)
    except TemplateError as error:
        refused = error
    if refused is not None:
        assert 0 <= refused.at <= len(source)
        return
    again = parse(
        "".join(
            piece.text.replace("{", "{{").replace("}", "}}")
            if isinstance(piece, Text)
            else "{" + (str(piece.tokens) if piece.tokens else "|".join(piece.choices)) + "}"
            for piece in template.pieces
        )
    )
    assert [replace(one, at=0) for one in again.pieces] == [
        replace(one, at=0) for one in template.pieces
    ]


def test_a_space_before_a_hole_belongs_to_the_hole() -> None:
    words = Words()
    template = parse("A cat {2} on {plain|dark red}{1}. {3}").encode(
        words.encode, words.decode, spaced=True, most=99, most_passes=99
    )
    named = [words.decode(part) if isinstance(part, tuple) else part for part in template.parts]
    assert named[0] == "A cat"
    assert named[1] == Masks(2, opens_with_space=True)
    assert named[2] == " on"
    assert isinstance(named[3], Choices)
    assert [words.decode(option) for option in named[3].options] == [" plain", " dark red"]
    assert named[4:] == [Masks(1), ".", Masks(3, opens_with_space=True)]


def test_without_such_tokens_the_text_keeps_its_space() -> None:
    words = Words()
    template = parse("A {2} {b|c}").encode(
        words.encode, words.decode, spaced=False, most=99, most_passes=99
    )
    assert template.parts[1] == Masks(2)
    assert words.decode(template.parts[0]) == "A "  # type: ignore[arg-type]
    assert isinstance(template.parts[3], Choices)
    assert [words.decode(option) for option in template.parts[3].options] == ["b", "c"]


@pytest.mark.parametrize(
    ("source", "limits", "reason", "at"),
    [
        ("a cat {4}", {"most": 6}, "up to here it has 6 tokens, and a canvas of 6 takes 5", 6),
        ("a {999999999999} b", {}, "up to here it has 1000000000 tokens", 2),
        ("a {b|c d e} {f|g}", {"most_passes": 4}, "the choices up to here take 5 passes", 12),
        ("a § {2}", {}, "the model's tokenizer has no tokens for '§'", 2),
        ("a {b|c §}", {}, "the model's tokenizer has no tokens for '§'", 2),
    ],
)
def test_what_does_not_fit_the_model_is_refused_with_its_place(
    source: str, limits: dict[str, Any], reason: str, at: int
) -> None:
    with pytest.raises(TemplateError) as caught:
        encoded(source, **limits)
    assert reason in str(caught.value)
    assert caught.value.at - at in range(5)


def test_a_template_is_as_long_as_its_longest_choices_and_a_stop() -> None:
    template = encoded("a {3} {b|c d|e f g}")
    assert (template.canvas_length, template.masks, template.passes) == (8, 3, 1 + 2 + 3)
    assert encoded("a {3} {b|c d|e f g}", most=8) == template
    settings = SamplerSettings(template=template)
    assert (settings.canvas_length, settings.blocks, settings.steps_per_block) == (8, 1, 1)
    assert SamplerSettings(template=template, tokens_per_step=1).planned_steps == 6 + 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_length", 4),
        ("draft", (1, 2)),
        ("stop", ()),
        ("suffix", (1,)),
        ("compat", "official"),
        ("canvas_length", 3),
    ],
)
def test_settings_that_do_not_go_with_a_template(field: str, value: object) -> None:
    with pytest.raises(SettingsError, match=field):
        SamplerSettings(template=encoded("a {3}"), **{field: value})  # type: ignore[arg-type]

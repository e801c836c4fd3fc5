"""The one table of templates that captions are written from and parsed by."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from training.stickers.graph import BACKDROPS, COLOURS, PATTERNS, SHAPES, SIZES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from training.stickers.graph import RelationKind

Slot = Literal[
    "name", "colour", "shape", "size", "position", "count", "backdrop", "pattern",
    "relation", "subject", "object",
]  # fmt: skip
SLOTS: tuple[Slot, ...] = (
    "name", "colour", "shape", "size", "position", "count", "backdrop", "pattern",
    "relation", "subject", "object",
)  # fmt: skip
"""Kinds of content words. Per-token slot indices are 1 + the index here; 0 is template text."""

Kind = Literal["count", "backdrop", "opening", "sticker", "relation"]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Form of a placeholder -> value -> its surface phrases. Values are what the scene graph holds;
# a position's value is "row column", a number's its digits.
_POSITIONS = {
    "0 0": ("at the top left", "in the upper left"),
    "0 1": ("at the top", "in the upper middle"),
    "0 2": ("at the top right", "in the upper right"),
    "1 0": ("on the left", "at the left"),
    "1 1": ("in the middle", "in the centre"),
    "1 2": ("on the right", "at the right"),
    "2 0": ("at the bottom left", "in the lower left"),
    "2 1": ("at the bottom", "in the lower middle"),
    "2 2": ("at the bottom right", "in the lower right"),
}
_PLURAL = {str(number): (NUMBERS[number],) for number in range(2, 10)}
_ANY_NUMBER = {"1": ("one",), **_PLURAL}
SURFACES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "size": {size: (size,) for size in SIZES},
    "colour": {colour: (colour,) for colour in COLOURS},
    "shape": {s: (s if s in ("round", "square", "oval") else f"{s}-shaped",) for s in SHAPES},
    "position": _POSITIONS,
    "count": _PLURAL,
    "large": _ANY_NUMBER,
    "small": _ANY_NUMBER,
    "backdrop": {backdrop: (backdrop,) for backdrop in BACKDROPS},
    "pattern": {pattern: (pattern,) for pattern in PATTERNS},
    "relation": {
        "left of": ("left of",),
        "right of": ("right of",),
        "above": ("above",),
        "below": ("below",),
    },
    "side": {
        "left of": ("to its left",),
        "right of": ("to its right",),
        "above": ("above it",),
        "below": ("below it",),
    },
    "comparison": {
        "left of": ("further left",),
        "right of": ("further right",),
        "above": ("higher",),
        "below": ("lower",),
    },
}

PREPOSITION = len("at the ")
"""Every position's phrase begins with so many characters that are no content."""

NAME_FORMS = ("name", "subject", "object")

FORM_SLOT: Mapping[str, Slot] = {
    "name": "name", "colour": "colour", "shape": "shape", "size": "size", "position": "position",
    "count": "count", "large": "count", "small": "count", "backdrop": "backdrop",
    "pattern": "pattern", "relation": "relation", "side": "relation", "comparison": "relation",
    "subject": "subject", "object": "object",
}  # fmt: skip
"""Which kind of content a placeholder holds."""

# {form} is a placeholder, {Form} one that starts a sentence; [a] and [A] agree with the placeholder
# after them; [one|many:form] agrees with a number. An opening is one sentence or two.
OPENINGS: tuple[tuple[str, ...], ...] = (
    ("There are {count} stickers on [a] {pattern} {backdrop} backdrop.",),
    ("{Count} stickers lie on [a] {backdrop} backdrop, which is {pattern}.",),
    ("[A] {pattern} {backdrop} backdrop holds {count} stickers.",),
    ("The picture shows {count} stickers.", "The backdrop is {backdrop} and {pattern}."),
    ("There are {count} stickers.", "They lie on [a] {pattern} {backdrop} backdrop."),
)
SIZED_OPENINGS: tuple[tuple[str, ...], ...] = (
    (
        "{Large} large [sticker|stickers:large] and {small} small [sticker|stickers:small] "
        "lie on [a] {pattern} {backdrop} backdrop.",
    ),
    (
        "Of the {count} stickers on [a] {pattern} {backdrop} backdrop, "
        "{large} [is|are:large] large.",
    ),
    (
        "Of the {count} stickers on [a] {pattern} {backdrop} backdrop, "
        "{small} [is|are:small] small.",
    ),
)
"""Openings that say how many stickers are large and small; for scenes with both."""

STICKERS: tuple[str, ...] = (
    "[A] {size} {name} sits on [a] {colour} {shape} plate {position}.",
    "{Position} is [a] {size} {name} on [a] {colour} {shape} plate.",
    "[A] {colour} {shape} plate {position} holds [a] {size} {name}.",
    "{Position}, [a] {shape} {colour} plate shows [a] {size} {name}.",
    "The {name} {position} is {size}, on [a] {shape} {colour} plate.",
    "The {size} {colour} plate {position} is {shape} and shows [a] {name}.",
    "[A] {name} {position} has [a] {size} {shape} plate in {colour}.",
    "[A] {shape} plate in {colour} shows [a] {size} {name} {position}.",
)

RELATIONS: tuple[str, ...] = (
    "The {subject} is {relation} the {object}.",
    "{Relation} the {object} is the {subject}.",
    "You see the {subject} {relation} the {object}.",
    "The {object} has the {subject} {side}.",
    "The {subject} lies {comparison} than the {object}.",
)

CONVERSE: Mapping[RelationKind, RelationKind] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
"""What the object is to the subject."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a template.

    A "text" is its one word; an "article" is "a" or "an" for the placeholder `form` after it; a
    "number" is its first word where the placeholder `form` is one and its second otherwise; a
    "placeholder" stands for a phrase of `form`, with a capital first letter if `capital`.
    """

    role: Literal["text", "article", "number", "placeholder"]
    words: tuple[str, ...] = ()
    form: str = ""
    capital: bool = False


@dataclass(frozen=True, slots=True)
class Template:
    """One sentence of the grammar."""

    kind: Kind
    parts: tuple[Part, ...]

    def render(self, phrases: Mapping[str, str]) -> tuple[str, list[tuple[int, int, str]]]:
        """The sentence with its placeholders filled in, and (start, end, form) of each one.

        A position's characters leave out its "at the".
        """
        pieces: list[str] = []
        spans: list[tuple[int, int, str]] = []
        length = 0
        for part in self.parts:
            if part.role == "text":
                piece = part.words[0]
            elif part.role == "article":
                piece = part.words[article(phrases[part.form]) == "an"]
            elif part.role == "number":
                piece = part.words[phrases[part.form] != "one"]
            else:
                phrase = phrases[part.form]
                piece = phrase[0].upper() + phrase[1:] if part.capital else phrase
                start = length + (PREPOSITION if part.form == "position" else 0)
                spans.append((start, length + len(piece), part.form))
            pieces.append(piece)
            length += len(piece)
        return "".join(pieces), spans


def article(phrase: str) -> str:
    """ "a" or "an", whichever the sound of the phrase's first word asks for."""
    word = phrase.lower()
    if word.startswith(("uni", "uk", "us", "eu", "one")):
        return "a"
    return "an" if word[0] in "aeiou8" or word.startswith(("hour", "heir", "x-")) else "a"


def compile_template(source: str, kind: Kind) -> Template:
    """A template from its written form, see the tables above."""
    pieces = [piece for piece in re.split(r"(\{\w+\}|\[[^\]]+\])", source) if piece]
    parts: list[Part] = []
    for index, piece in enumerate(pieces):
        if piece in ("[a]", "[A]"):
            words = ("a", "an") if piece == "[a]" else ("A", "An")
            parts.append(Part("article", words, pieces[index + 2].strip("{}").lower()))
        elif piece[0] == "[":
            both, form = piece.strip("[]").split(":")
            parts.append(Part("number", tuple(both.split("|")), form))
        elif piece[0] == "{":
            form = piece.strip("{}")
            parts.append(Part("placeholder", (), form.lower(), form[0].isupper()))
        else:
            parts.append(Part("text", (piece,)))
    return Template(kind, tuple(parts))


def _compile_opening(sources: tuple[str, ...]) -> tuple[Template, ...]:
    kinds: tuple[Kind, ...] = ("opening",) if len(sources) == 1 else ("count", "backdrop")
    return tuple(compile_template(*pair) for pair in zip(sources, kinds, strict=True))


OPENING_TEMPLATES = tuple(_compile_opening(sources) for sources in OPENINGS)
SIZED_TEMPLATES = tuple(_compile_opening(sources) for sources in SIZED_OPENINGS)
STICKER_TEMPLATES = tuple(compile_template(source, "sticker") for source in STICKERS)
RELATION_TEMPLATES = tuple(compile_template(source, "relation") for source in RELATIONS)

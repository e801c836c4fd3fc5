"""Templates as text: fixed text with holes, `A photo of {8}. The backdrop is {plain|striped}.`

`{8}` is a hole of eight tokens, `{plain|striped}` one of choices; `{{` and `}}` are braces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from rediff_model.sampling.params import SettingsError
from rediff_model.sampling.template import Choices, Masks, Template, TemplateTooLong

if TYPE_CHECKING:
    from collections.abc import Callable

    from rediff_model.sampling.template import Part

MOST_CHOICES: Final = 64
"""Choices of a hole."""
_SHOWN: Final = 32
"""Characters of a template that an error shows on either side of the place."""


class TemplateError(SettingsError):
    """A template that cannot be used; the message shows the place with a caret."""

    def __init__(self, reason: str, text: str, at: int) -> None:
        first, last = max(0, at - _SHOWN), min(len(text), at + _SHOWN)
        lead, tail = "…" if first else "", "…" if last < len(text) else ""
        # Whatever is not printed in one column would move the caret.
        shown = re.sub(r"\s", " ", text[first:last])
        caret = " " * (len(lead) + at - first) + "^"
        super().__init__(
            f"template: {reason}, at character {at + 1}:\n{lead}{shown}{tail}\n{caret}"
        )
        self.at = at
        """Characters before the place."""


@dataclass(frozen=True, slots=True)
class Text:
    """Fixed text."""

    at: int
    """Where it begins in the template."""
    text: str
    """Without escapes."""


@dataclass(frozen=True, slots=True)
class Hole:
    """A place to be filled: a number of tokens, or one of the choices."""

    at: int
    """Where its brace opens in the template."""
    tokens: int | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TemplateText:
    """A parsed template."""

    source: str
    pieces: tuple[Text | Hole, ...]

    @property
    def holes(self) -> tuple[Hole, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Hole))

    def encode(
        self,
        encode: Callable[[str], tuple[int, ...]],
        decode: Callable[[tuple[int, ...]], str],
        *,
        spaced: bool,
        most: int,
        most_passes: int,
    ) -> Template:
        """The template in token ids, each fixed text and each choice encoded by itself.

        If `spaced`, tokens begin with the space before their word: then a space before a hole
        belongs to the hole, whose first token or whose choices begin with it.

        Raises:
            TemplateError: a text that the tokenizer does not give back, choices of the same tokens,
                more than `most` tokens, or more than `most_passes` passes to compare choices.
        """

        def ids_of(text: str, at: int) -> tuple[int, ...]:
            ids = encode(text)
            if (again := decode(ids)) != text:
                pairs = zip(text, again, strict=False)
                same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                shown = repr(text[same : same + 1]) if same < len(text) else "this text"
                reason = f"the model's tokenizer has no tokens for {shown}"
                raise TemplateError(reason, self.source, at + same)
            return ids

        parts: list[Part] = []
        for number, piece in enumerate(self.pieces):
            before = self.pieces[number - 1] if number else None
            space = spaced and isinstance(before, Text) and before.text.endswith(" ")
            if isinstance(piece, Text):
                text = piece.text
                if spaced and text.endswith(" ") and number + 1 < len(self.pieces):
                    text = text[:-1]
                parts.append(ids_of(text, piece.at))
            elif piece.tokens is not None:
                parts.append(Masks(piece.tokens, opens_with_space=space))
            else:
                lead = " " if space else ""
                options = tuple(ids_of(lead + choice, piece.at) for choice in piece.choices)
                if len(set(options)) < len(options):
                    reason = "two choices have the same tokens"
                    raise TemplateError(reason, self.source, piece.at)
                parts.append(Choices(options))
            try:
                Template.check(parts, most, most_passes)
            except TemplateTooLong as error:
                raise TemplateError(str(error), self.source, piece.at) from None
        return Template(tuple(part for part in parts if part != ()))


def parse(source: str) -> TemplateText:
    """Read a template.

    Raises:
        TemplateError: a brace without the other, a hole in a hole, no hole, a hole of no tokens, or
            choices that are empty, alone, twice there or too many.
    """
    pieces: list[Text | Hole] = []
    text, begun, at = "", 0, 0
    while at < len(source):
        character = source[at]
        if source[at : at + 2] in ("{{", "}}"):
            text, at = text + character, at + 2
        elif character == "{":
            if text:
                pieces.append(Text(begun, text))
            end = _end(source, at)
            pieces.append(_hole(source, at, end))
            text, begun, at = "", end + 1, end + 1
        elif character == "}":
            raise TemplateError("} closes no hole; as text write }}", source, at)
        else:
            text, at = text + character, at + 1
    if text:
        pieces.append(Text(begun, text))
    template = TemplateText(source, tuple(pieces))
    if not template.holes:
        raise TemplateError("there is no hole, such as {8} or {plain|striped}", source, len(source))
    return template


def _end(source: str, begin: int) -> int:
    """Where the hole that opens at `begin` is closed."""
    for at in range(begin + 1, len(source)):
        if source[at] == "{":
            raise TemplateError("a hole cannot hold another", source, at)
        if source[at] == "}":
            return at
    raise TemplateError("the hole is not closed; as text write {{", source, begin)


def _hole(source: str, begin: int, end: int) -> Hole:
    inside = source[begin + 1 : end]
    if not inside.strip():
        reason = "the hole is empty: give a number of tokens or choices"
        raise TemplateError(reason, source, begin)
    if "|" not in inside:
        return Hole(begin, tokens=_tokens(inside.strip(), source, begin))
    choices: list[str] = []
    at = begin + 1
    for choice in inside.split("|"):
        name = choice.strip()
        place = at + len(choice) - len(choice.lstrip()) if name else at
        if not name:
            raise TemplateError("a choice is empty", source, place)
        if name in choices:
            raise TemplateError(f"the choice {name!r} is there twice", source, place)
        if len(choices) == MOST_CHOICES:
            raise TemplateError(f"a hole has {MOST_CHOICES} choices at most", source, place)
        choices.append(name)
        at += len(choice) + 1
    return Hole(begin, choices=tuple(choices))


def _tokens(inside: str, source: str, begin: int) -> int:
    """The number of a hole of tokens."""
    if re.fullmatch(r"[-+]?[0-9]+", inside) is None:
        reason = "a hole is a number of tokens, or at least two choices with | between"
        raise TemplateError(reason, source, begin)
    digits = inside.lstrip("+-").lstrip("0")
    if inside.startswith("-") or not digits:
        raise TemplateError("a hole has 1 token or more", source, begin)
    # More digits than any canvas has; Python refuses to read thousands of them.
    return int(digits[:9])

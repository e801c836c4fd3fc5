"""Reads captions back: which sentences the grammar accepts, and what they state."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, cast

from training.stickers.templates import (
    NAME_FORMS,
    OPENING_TEMPLATES,
    RELATION_TEMPLATES,
    SIZED_TEMPLATES,
    STICKER_TEMPLATES,
    SURFACES,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from training.stickers.graph import RelationKind
    from training.stickers.templates import Kind, Template

Attribute = Literal["size", "colour", "shape", "position"]
ATTRIBUTES: tuple[Attribute, ...] = ("size", "colour", "shape", "position")


@dataclass(frozen=True, slots=True)
class CountFact:
    """There are `number` stickers, of all sizes or of one."""

    size: Literal["any", "small", "large"]
    number: int


@dataclass(frozen=True, slots=True)
class BackdropFact:
    """The backdrop has this colour."""

    colour: str


@dataclass(frozen=True, slots=True)
class PatternFact:
    """The backdrop has this pattern."""

    pattern: str


@dataclass(frozen=True, slots=True)
class ObjectFact:
    """The scene holds a sticker of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class AttributeFact:
    """The sticker of this name has this size, colour, shape or position ("row column")."""

    name: str
    attribute: Attribute
    value: str


@dataclass(frozen=True, slots=True)
class RelationFact:
    """The sticker `subject` stands in this relation to the sticker `object`."""

    subject: str
    kind: RelationKind
    object: str


Fact = CountFact | BackdropFact | PatternFact | ObjectFact | AttributeFact | RelationFact


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a caption.

    `kind` and `facts` are None where the grammar does not accept it: such a sentence states
    nothing, but the class names in it still count as mentioned.
    """

    text: str
    kind: Kind | None
    facts: tuple[Fact, ...] | None
    mentions: tuple[str, ...]
    start: int = 0
    """Its first character in the caption."""
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Placeholder to the characters, from the sentence's start, that fill it in."""


def parse(text: str, names: Sequence[str]) -> tuple[Sentence, ...]:
    """The sentences of a caption in order; any text is accepted, empty text has none.

    A sentence ends in "." and stands one space from the one before. `names` are the class names
    the grammar knows. Raises ValueError if one of them cannot be a name in it.
    """
    return _parser(tuple(names)).parse(text)


class _Parser:
    """The grammar over one set of names."""

    def __init__(self, names: tuple[str, ...]) -> None:
        words = {w for slot in ("colour", "size", "backdrop") for w in SURFACES[slot]}
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9'-]*( [A-Za-z0-9'-]+)*", name):
                raise ValueError(f"a class name must be plain words, got {name!r}")
            if name in words:
                raise ValueError(f"a class name must not be a word of the grammar, got {name!r}")
        name_pattern = _alternation(names)
        self._mention = re.compile(rf"(?<![\w-]){name_pattern}(?![\w-])", re.IGNORECASE)
        self._spelling = {name.lower(): name for name in names}
        openings = (template for pair in OPENING_TEMPLATES + SIZED_TEMPLATES for template in pair)
        templates = dict.fromkeys((*openings, *STICKER_TEMPLATES, *RELATION_TEMPLATES))
        self._templates = [(each, _pattern(each, name_pattern)) for each in templates]

    def parse(self, text: str) -> tuple[Sentence, ...]:
        indent = len(text) - len(text.lstrip())
        sentences: list[Sentence] = []
        for found in re.finditer(r"[^.]*\.|[^.]+$", text.strip()):
            piece = found.group()
            spaced = not sentences or bool(re.match(r" [^ ]", piece))
            start = indent + found.start() + len(piece) - len(piece.lstrip())
            sentences.append(replace(self._sentence(piece.strip(), spaced=spaced), start=start))
        return tuple(sentences)

    def _sentence(self, text: str, *, spaced: bool) -> Sentence:
        for template, pattern in self._templates if spaced else ():
            match = pattern.fullmatch(text)
            if match is None:
                continue
            surfaces = {
                part.form: _lower_first(match[part.form]) if part.capital else match[part.form]
                for part in template.parts
                if part.role == "placeholder"
            }
            # The pattern takes either form of a/an, is/are and the like: writing the sentence
            # again from what it states shows whether the right one was used.
            if template.render(surfaces)[0] != text:
                continue
            mentions = tuple(surfaces[form] for form in NAME_FORMS if form in surfaces)
            spans = {form: match.span(form) for form in surfaces}
            facts = tuple(_facts(surfaces))
            return Sentence(text, template.kind, facts, mentions, spans=spans)
        found = self._mention.findall(text)
        return Sentence(text, None, None, tuple(self._spelling[name.lower()] for name in found))


@lru_cache(maxsize=8)
def _parser(names: tuple[str, ...]) -> _Parser:
    return _Parser(names)


def _facts(surfaces: Mapping[str, str]) -> Iterator[Fact]:
    """What a sentence states, from the phrases in its placeholders."""
    values = {
        form: phrase if form in NAME_FORMS else _VALUES[form][phrase]
        for form, phrase in surfaces.items()
    }
    if "count" in values:
        yield CountFact("any", int(values["count"]))
    if "large" in values:
        yield CountFact("large", int(values["large"]))
    if "small" in values:
        yield CountFact("small", int(values["small"]))
    if "backdrop" in values:
        yield BackdropFact(values["backdrop"])
    if "pattern" in values:
        yield PatternFact(values["pattern"])
    if "name" in values:
        yield ObjectFact(values["name"])
        for attribute in ATTRIBUTES:
            if attribute in values:
                yield AttributeFact(values["name"], attribute, values[attribute])
    if "subject" in values:
        kind = next(values[form] for form in ("relation", "side", "comparison") if form in values)
        yield RelationFact(values["subject"], cast("RelationKind", kind), values["object"])


_VALUES: Mapping[str, Mapping[str, str]] = {
    form: {phrase: value for value, phrases in table.items() for phrase in phrases}
    for form, table in SURFACES.items()
}


def _pattern(template: Template, name_pattern: str) -> re.Pattern[str]:
    """Matches the template with any content and either form of every agreeing word."""
    pieces = []
    for part in template.parts:
        if part.role != "placeholder":
            pieces.append(_alternation(part.words))
        elif part.form in NAME_FORMS:
            pieces.append(f"(?P<{part.form}>{name_pattern})")
        else:
            phrases: Iterable[str] = _VALUES[part.form]
            if part.capital:
                phrases = [phrase[0].upper() + phrase[1:] for phrase in phrases]
            pieces.append(f"(?P<{part.form}>{_alternation(phrases)})")
    return re.compile("".join(pieces))


def _alternation(phrases: Iterable[str]) -> str:
    """A pattern of any of the phrases, the longest first; of none it matches nothing."""
    ordered = sorted(phrases, key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, ordered))})" if ordered else "(?!)"


def _lower_first(phrase: str) -> str:
    return phrase[0].lower() + phrase[1:]

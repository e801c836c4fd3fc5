"""What each phrase of the scene grammar can be replaced by, in tokens of equal number."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from training.stickers.templates import CONVERSE, FORM_SLOT, NAME_FORMS, PREPOSITION, SURFACES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenizers import Tokenizer

    from training.stickers.grammar import Span
    from training.stickers.graph import RelationKind
    from training.stickers.templates import Slot

Ids = tuple[int, ...]


class Substitutes:
    """What each phrase of the grammar can be replaced by, in token ids."""

    def __init__(self, tokenizer: Tokenizer, names: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        articles = self._forms((" a", " an"), (" A", " An"), ("A", "An"))
        self.articles = {form: pair for pair in articles for form in pair}
        """Either form of an article to (before a consonant, before a vowel)."""
        self.singular = dict(self._forms((" is", " are"), (" sticker", " stickers")))
        """Singular form of a word to the plural."""
        pairs = articles + list(self.singular.items())
        self.flips = {**dict(pairs), **{other: one for one, other in pairs}}
        """Either form of an agreeing word to the other one."""
        self._names: dict[int, list[tuple[str, Ids]]] = {}
        for name in names:
            ids = self._ids(f" {name}")
            self._names.setdefault(len(ids), []).append((name, ids))
        self._phrases: dict[tuple[Slot, str], list[tuple[str, Ids]]] = {}
        for form, surfaces in SURFACES.items():
            self._add(FORM_SLOT[form], surfaces)

    def choices(self, text: str, span: Span, tokens: int) -> list[tuple[str, Ids]]:
        """(phrase, ids) of other meaning that can take the span's place, of as many tokens."""
        if span.slot in NAME_FORMS:
            return self._names.get(tokens, [])
        written = text[max(0, span.start - _before(span.slot)) : span.end]
        return self._phrases.get((span.slot, written), [])

    def _add(self, slot: Slot, surfaces: Mapping[str, tuple[str, ...]]) -> None:
        """The phrases of one form, written as they stand in a caption with what is before them."""
        cut = PREPOSITION if slot == "position" else 0
        for lead, capital in ((" ", False), (" ", True), ("", True)):
            entries = []
            for value, phrases in surfaces.items():
                for phrase in phrases:
                    written = phrase[0].upper() + phrase[1:] if capital else phrase
                    ids = self._ids(f" {written[cut:]}" if cut else f"{lead}{written}")
                    entries.append((value, phrase, f"{lead}{written}", ids))
            for value, phrase, written, ids in entries:
                self._phrases[slot, written] = [
                    (other[1][cut:], other[3])
                    for other in entries
                    if _differs(slot, value, other[0])
                    and other[1][:cut] == phrase[:cut]
                    and len(other[3]) == len(ids)
                ]

    def _forms(self, *pairs: tuple[str, str]) -> list[tuple[int, int]]:
        """The pairs that are one token each."""
        ids = [(self._ids(one), self._ids(other)) for one, other in pairs]
        return [(one[0], other[0]) for one, other in ids if len(one) == len(other) == 1]

    def _ids(self, text: str) -> Ids:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _before(slot: Slot) -> int:
    """How many characters before a span belong to what it can be replaced within."""
    return 1 + PREPOSITION if slot == "position" else 1


def _differs(slot: Slot, value: str, other: str) -> bool:
    """Whether a phrase of meaning `other` is a fit, wrong replacement for one of `value`."""
    if slot == "relation":
        return CONVERSE[cast("RelationKind", value)] == other
    if slot == "count":
        return other != value and other in ("2", "3", "4", "5")
    return other != value

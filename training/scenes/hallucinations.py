"""Wrong captions of the same token count: hallucinations, and clashes of two wordings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from training.stickers.grammar import compose
from training.stickers.substitutes import Substitutes
from training.stickers.templates import NAME_FORMS, article
from training.stickers.tokenizer import token_ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from tokenizers import Tokenizer

    from training.stickers.grammar import Caption, Span
    from training.stickers.graph import Scene
    from training.stickers.substitutes import Ids

_AGREEMENT_SHARE = 0.1
"""Of the errors, those of a/an, is/are or singular and plural instead of content."""

_ATTEMPTS = 8
"""Draws of a place for an error before giving up: some phrases have no equal in length."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A wrong caption and its correction, of one token count, as the training data names them.

    `org_ids` is the wrong one, `target_ids` the right one, `changed` the positions that differ.
    """

    org_ids: list[int]
    target_ids: list[int]
    changed: list[int]


def hallucinate(
    scene: Scene,
    caption: Caption,
    tokenizer: Tokenizer,
    names: Sequence[str],
    rng: np.random.Generator,
    errors: int = 1,
) -> Pair | None:
    """A caption with up to `errors` places made wrong; None if none could be.

    A place is a content phrase, replaced by one of another meaning and the same token count (a
    name by one that is not in the scene, a relation by its converse, or its two names swapped), or
    a word that agrees. Words that agree with a replaced phrase follow it.
    """
    table = _table(tokenizer, tuple(names))
    encoding = tokenizer.encode(caption.text, add_special_tokens=False)
    edit = _Edit(scene, caption, encoding.ids, encoding.offsets, table)
    draws = rng.random((errors * _ATTEMPTS, 3)).tolist()
    made = 0
    for which, where, what in draws:
        if which < _AGREEMENT_SHARE:
            made += edit.disagree(where)
        elif which < (1 + _AGREEMENT_SHARE) / 2:
            made += edit.replace(where, what)
        else:
            made += edit.swap(where) or edit.replace(where, what)
        if made == errors:
            break
    return _pair(edit.ids, encoding.ids)


def conflict(
    scene: Scene,
    caption: Caption,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    share: float = 0.08,
) -> Pair | None:
    """A caption in which a share of the tokens comes from another wording of the same scene.

    The tokens keep their positions, as when many are decoded at once. None if nothing changed.
    """
    target = tokenizer.encode(caption.text, add_special_tokens=False).ids
    other = tokenizer.encode(compose(scene, rng).text, add_special_tokens=False).ids
    org = list(target)
    for position in (rng.random(min(len(target), len(other))) < share).nonzero()[0].tolist():
        org[position] = other[position]
    return _pair(org, target)


def _pair(org: list[int], target: list[int]) -> Pair | None:
    changed = [i for i in range(len(org)) if org[i] != target[i]]
    return Pair(org, target, changed) if changed else None


class _Edit:
    """A caption's tokens while errors are put into them; no position is changed twice."""

    def __init__(
        self,
        scene: Scene,
        caption: Caption,
        ids: list[int],
        offsets: list[tuple[int, int]],
        table: Substitutes,
    ) -> None:
        self.ids = list(ids)
        self._right = ids
        self._caption = caption
        self._present = {sticker.name for sticker in scene.stickers}
        self._ranges = token_ranges(offsets, caption.spans)
        self._table = table
        self._used: set[int] = set()

    def replace(self, where: float, what: float) -> bool:
        """Another meaning for the span at `where`, both in 0 to 1; False if it has no equal."""
        index = int(where * len(self._caption.spans))
        if not self._ranges:
            return False
        span = self._caption.spans[index]
        first, last = self._ranges[index]
        choices = self._table.choices(self._caption.text, span, last - first)
        if span.slot in NAME_FORMS:
            choices = [choice for choice in choices if choice[0] not in self._present]
        if not choices:
            return False
        phrase, ids = choices[int(what * len(choices))]
        return self._put(index, [(first, ids), *self._agree(span, first, last, phrase)])

    def swap(self, where: float) -> bool:
        """The two names of a relation exchanged, if the span at `where` is one of them."""
        spans = self._caption.spans
        index = int(where * len(spans))
        if not spans or spans[index].slot not in ("subject", "object"):
            return False
        start = self._group(index)
        other = next(
            i
            for i in range(start, start + 3)
            if i != index and spans[i].slot in ("subject", "object")
        )
        (first, last), (second, end) = self._ranges[index], self._ranges[other]
        if last - first != end - second:
            return False
        exchanged = [
            (first, tuple(self._right[second:end])),
            (second, tuple(self._right[first:last])),
        ]
        return self._put(index, exchanged)

    def disagree(self, where: float) -> bool:
        """The other form of one word that agrees with another."""
        flips = self._table.flips
        content = {i for first, last in self._ranges for i in range(first, last)}
        places = [
            i
            for i, token in enumerate(self._right)
            if token in flips and i not in content and self.ids[i] == token
        ]
        if not places:
            return False
        place = places[int(where * len(places))]
        self.ids[place] = flips[self._right[place]]
        return True

    def _agree(self, span: Span, first: int, last: int, phrase: str) -> list[tuple[int, Ids]]:
        """What has to change around a new phrase: the article before or the words counted after."""
        table = self._table
        if span.slot != "count":
            before = self._right[first - 1] if first else -1
            forms = table.articles.get(before)
            return [(first - 1, (forms[article(phrase) == "an"],))] if forms else []
        if self._caption.text[span.start : span.end].lower() != "one":
            return []
        for place in range(last, len(self._right)):
            if self._right[place] in table.singular:
                return [(place, (table.singular[self._right[place]],))]
        return []

    def _put(self, index: int, changes: list[tuple[int, Ids]]) -> bool:
        """Writes the tokens; not where a span was replaced before, nor over another error."""
        places = [place for first, ids in changes for place in range(first, first + len(ids))]
        group = self._group(index)
        changed = any(self.ids[place] != self._right[place] for place in places)
        if changed or group in self._used:
            return False
        self._used.add(group)
        for first, ids in changes:
            self.ids[first : first + len(ids)] = ids
        return True

    def _group(self, index: int) -> int:
        """The first span of what can have one error: a span alone, or the three of a relation.

        Two errors in one relation can make it true again. Relations come last, three spans each.
        """
        spans = self._caption.spans
        if spans[index].slot in _RELATION_SLOTS:
            return index - (index - len(spans)) % 3
        return index


@lru_cache(maxsize=4)
def _table(tokenizer: Tokenizer, names: tuple[str, ...]) -> Substitutes:
    return Substitutes(tokenizer, names)


_RELATION_SLOTS = ("subject", "relation", "object")

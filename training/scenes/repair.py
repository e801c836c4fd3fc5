"""The true caption nearest to a draft, token for token: what the draft should have said.

Sentences that are true and new stay. What lies between them is divided into true sentences about
something not said yet, such that the fewest tokens change and none moves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from training.scenes.sentences import true_sentences

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenizers import Tokenizer

    from training.scenes.graph import Scene
    from training.scenes.sentences import Topic, TrueSentence

MOST_CHANGED = 0.6
"""A sentence of which a greater share of the tokens would change is left as it is: to rewrite it
would be to guess at what it was meant to be."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [first, last) of a draft and the true sentence they should be.

    `target` is None where no true sentence of that many tokens is near; `repeats` tells that the
    tokens are a true sentence about what an earlier one has said.
    """

    first: int
    last: int
    target: TrueSentence | None
    repeats: bool = False

    def changed(self, ids: Sequence[int]) -> list[int]:
        """Positions whose token is not that of the target."""
        if self.target is None:
            return []
        return [
            self.first + i
            for i, token in enumerate(self.target.ids)
            if ids[self.first + i] != token
        ]


def repair(ids: Sequence[int], scene: Scene, tokenizer: Tokenizer) -> list[Piece]:
    """Pieces that cover a draft in order; a piece that is right has itself as its target."""
    sentences = {first: _sentences(scene, tokenizer, first) for first in (True, False)}
    known = {first: {each.text: each for each in sentences[first]} for first in (True, False)}
    pieces: list[Piece] = []
    said: set[Topic] = set()
    wrong: list[Piece] = []
    for first, last in _spans(ids, tokenizer):
        found = known[first == 0].get(tokenizer.decode(ids[first:last]))
        if found is None or found.topics & said:
            wrong.append(Piece(first, last, None, repeats=found is not None))
        else:
            said |= found.topics
            # True is true whichever tokens spell it.
            pieces.append(Piece(first, last, replace(found, ids=tuple(ids[first:last]))))
    for region in _regions(wrong):
        pieces += _divide(ids, region, sentences, said)
    pieces = _one_each(ids, pieces, sentences)
    return sorted(pieces, key=lambda piece: piece.first)


@lru_cache(maxsize=64)
def _sentences(scene: Scene, tokenizer: Tokenizer, first: bool) -> tuple[TrueSentence, ...]:
    return tuple(true_sentences(scene, tokenizer, first=first))


def _spans(ids: Sequence[int], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Tokens of each sentence: up to a full stop, and what is left at the end."""
    ends = [i + 1 for i, token in enumerate(ids) if "." in (tokenizer.id_to_token(token) or "")]
    edges = sorted({0, *ends, len(ids)})
    return list(pairwise(edges))


def _regions(wrong: Sequence[Piece]) -> list[list[Piece]]:
    """Wrong sentences that follow each other, together."""
    regions: list[list[Piece]] = []
    for piece in wrong:
        if regions and regions[-1][-1].last == piece.first:
            regions[-1].append(piece)
        else:
            regions.append([piece])
    return regions


def _divide(
    ids: Sequence[int],
    region: Sequence[Piece],
    sentences: dict[bool, tuple[TrueSentence, ...]],
    said: set[Topic],
) -> list[Piece]:
    """The cheapest division of a region into true sentences and draft sentences left alone."""
    start, end = region[0].first, region[-1].last
    by_start = {piece.first: piece for piece in region}
    tables = {first: _by_length(sentences[first], said) for first in (True, False)}
    best: dict[int, tuple[float, list[Piece]]] = {start: (0.0, [])}
    for at in range(start, end):
        if at not in best:
            continue
        cost, before = best[at]
        options: list[tuple[float, Piece]] = []
        for length, (matrix_KL, candidates) in tables[at == 0].items():
            if at + length > end:
                continue
            changed_K = (matrix_KL != np.asarray(ids[at : at + length])).sum(axis=1)
            nearest = int(changed_K.argmin())
            if changed_K[nearest] < MOST_CHANGED * length:
                repeats = at in by_start and by_start[at].repeats
                piece = Piece(at, at + length, candidates[nearest], repeats)
                options.append((float(changed_K[nearest]), piece))
        if at in by_start:
            alone = by_start[at]
            options.append((MOST_CHANGED * (alone.last - alone.first), alone))
        for extra, piece in options:
            if piece.last not in best or cost + extra < best[piece.last][0]:
                best[piece.last] = cost + extra, [*before, piece]
    return best[end][1]


def _one_each(
    ids: Sequence[int], pieces: Iterable[Piece], sentences: dict[bool, tuple[TrueSentence, ...]]
) -> list[Piece]:
    """Of pieces with one topic the nearest keeps it, the others get another sentence or none."""
    said: set[Topic] = set()
    settled = []
    for piece in sorted(pieces, key=lambda piece: (len(piece.changed(ids)), piece.first)):
        if piece.target is None:
            settled.append(piece)
            continue
        target: TrueSentence | None = piece.target
        if piece.target.topics & said:
            target = _nearest(ids, piece, sentences[piece.first == 0], said)
        if target is not None:
            said |= target.topics
        settled.append(Piece(piece.first, piece.last, target, piece.repeats))
    return settled


def _nearest(
    ids: Sequence[int], piece: Piece, sentences: Iterable[TrueSentence], said: set[Topic]
) -> TrueSentence | None:
    length = piece.last - piece.first
    table = _by_length(sentences, said).get(length)
    if table is None:
        return None
    changed_K = (table[0] != np.asarray(ids[piece.first : piece.last])).sum(axis=1)
    nearest = int(changed_K.argmin())
    return table[1][nearest] if changed_K[nearest] < MOST_CHANGED * length else None


def _by_length(
    sentences: Iterable[TrueSentence], said: set[Topic]
) -> dict[int, tuple[np.ndarray, list[TrueSentence]]]:
    """Token matrices [K, L] of the sentences about what is not said yet, by their length L."""
    groups: dict[int, list[TrueSentence]] = {}
    for sentence in sentences:
        if not sentence.topics & said:
            groups.setdefault(len(sentence.ids), []).append(sentence)
    return {
        length: (np.array([each.ids for each in group]), group) for length, group in groups.items()
    }

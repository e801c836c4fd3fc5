"""The true caption nearest to a draft, token for token: what the draft should have said.

Sentences that are true and new stay. What lies between them is divided into true sentences about
something not said yet, such that the fewest tokens change and none moves. A sentence for which
there is none of its length gets what parts of another one fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np

from training.stickers.true_sentences import true_sentences

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenizers import Tokenizer

    from training.stickers.graph import Scene
    from training.stickers.true_sentences import Topic, TrueSentence

MOST_CHANGED = 0.6
"""A sentence is not rewritten if a greater share of its tokens would change: that would be to guess
at what it was meant to be."""

LEAST_ALIKE = 0.6
"""Share of tokens in common, in order, from which a sentence of another length gives its parts."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [first, last) of a draft and what they should be, `labels`."""

    first: int
    last: int
    labels: tuple[int, ...]
    target: TrueSentence | None = None
    """The true sentence that the labels spell; None where no sentence of that length is near."""
    topics: frozenset[Topic] = frozenset()
    """What it speaks of when put right."""
    repeats: bool = False
    """It is a true sentence about what an earlier one has said."""

    @classmethod
    def of(cls, first: int, target: TrueSentence, repeats: bool = False) -> Self:
        """Tokens from `first` on that should spell `target`."""
        last = first + len(target.ids)
        return cls(first, last, target.ids, target, target.topics, repeats)

    def changed(self, ids: Sequence[int]) -> list[int]:
        """Positions whose token is not the label."""
        return [
            self.first + i for i, label in enumerate(self.labels) if ids[self.first + i] != label
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
            wrong.append(Piece(first, last, tuple(ids[first:last]), repeats=found is not None))
        else:
            said |= found.topics
            # True is true whichever tokens spell it.
            pieces.append(Piece.of(first, replace(found, ids=tuple(ids[first:last]))))
    for region in _regions(wrong):
        pieces += _divide(ids, region, sentences, said)
    pieces = _one_each(ids, pieces, sentences)
    pieces = _mend_parts(pieces, sentences, tokenizer)
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
                piece = Piece.of(at, candidates[nearest], repeats)
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
        if piece.topics & said:
            target = _nearest(ids, piece, sentences[piece.first == 0], said)
        if target is None:
            own = tuple(ids[piece.first : piece.last])
            settled.append(Piece(piece.first, piece.last, own, repeats=piece.repeats))
            continue
        said |= target.topics
        settled.append(Piece.of(piece.first, target, piece.repeats))
    return settled


def _mend_parts(
    pieces: Sequence[Piece], sentences: dict[bool, tuple[TrueSentence, ...]], tokenizer: Tokenizer
) -> list[Piece]:
    """Pieces without target get the parts of equal length of the sentence most like them."""
    said = {topic for piece in pieces for topic in piece.topics}
    mended = []
    for piece in pieces:
        if piece.target is None:
            free = [each for each in sentences[piece.first == 0] if not each.topics & said]
            piece = _mend(piece, free, tokenizer)
            said |= piece.topics
        mended.append(piece)
    return mended


def _mend(piece: Piece, sentences: Iterable[TrueSentence], tokenizer: Tokenizer) -> Piece:
    matcher = SequenceMatcher[int](None, (), piece.labels, autojunk=False)
    best, alike = None, LEAST_ALIKE
    for sentence in sentences:
        matcher.set_seq1(sentence.ids)
        if matcher.quick_ratio() > alike and (ratio := matcher.ratio()) > alike:
            best, alike = sentence, ratio
    if best is None:
        return piece
    matcher.set_seq1(best.ids)
    labels = list(piece.labels)
    for what, i, i_end, j, j_end in matcher.get_opcodes():
        cuts = [(best.ids, i), (best.ids, i_end), (piece.labels, j), (piece.labels, j_end)]
        if (
            what == "replace"
            and i_end - i == j_end - j
            and all(
                cut == len(tokens) or begins_word(tokens[cut], tokenizer) for tokens, cut in cuts
            )
        ):
            labels[j:j_end] = best.ids[i:i_end]
    return replace(piece, labels=tuple(labels), topics=best.topics)


def begins_word(token: int, tokenizer: Tokenizer) -> bool:
    """Whether a token does not go on with the word before it."""
    return not tokenizer.decode([token])[:1].isalnum()


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

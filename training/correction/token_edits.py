"""Corrections put on a draft's own tokens.

`pairs.correct` tokenises the answer anew. A draft of many tokens a step may consist of other tokens
than the tokenizer would choose, and those are what the model must learn to revise.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from training.data.problems import Problem
from training.data.segment_labels import Correction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from training.correction.records import Draft
    from training.data.problems import Kind
    from training.data.segment_labels import Segment


def token_offsets(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Characters of the text before each token, and of the whole text at the end."""
    return [len(tokenizer.decode(ids[:count])) for count in range(len(ids) + 1)]


def apply(
    draft: Draft, segments: Sequence[Segment], tokenizer: Tokenizer
) -> tuple[Correction, list[Segment], list[Problem]]:
    """The draft's ids with corrected labels, the segments that were used, and what was wrong with
    the others: `unequal` token counts, `identical`, `unaligned` (other tokens would change, those
    of another correction too, or the ids do not spell the text)."""
    labels, flags = list(draft.ids), [False] * len(draft.ids)
    used: list[Segment] = []
    problems: list[Problem] = []
    offsets = token_offsets(draft.ids, tokenizer)
    spells = tokenizer.decode(draft.ids) == draft.text
    plain = tokenizer.encode(draft.text, add_special_tokens=False).ids == labels
    text = draft.text
    # From the right, so that the positions of the segments still to come stay valid.
    for segment in sorted(segments, key=lambda segment: -segment.start):
        rows = [
            row
            for row, (start, end) in enumerate(pairwise(offsets))
            if start < segment.end and end > segment.start
        ]
        kind: Kind | None = "unaligned"
        new: list[int] = []
        fixed = text[: segment.start] + segment.target + text[segment.end :]
        if spells and rows:
            first, last = rows[0], rows[-1] + 1
            if not plain:
                first, last = _whole_words(first, last, draft.text, offsets)
            before = draft.text[offsets[first] : segment.start]
            after = draft.text[segment.end : offsets[last]]
            piece = f"{before}{segment.target}{after}"
            new = tokenizer.encode(piece, add_special_tokens=False).ids
            if not any(flags[first:last]):
                kind = _judge(labels, first, last, new, fixed, tokenizer if plain else None)
        if kind:
            org = draft.text[segment.start : segment.end]
            problems.append(Problem(kind, draft.key, f"{org!r} -> {segment.target!r}"))
            continue
        text = fixed
        labels[first:last] = new
        flags[first:last] = [True] * (last - first)
        used.append(segment)
    return Correction(draft.ids, tuple(labels), tuple(flags)), used[::-1], problems


def _whole_words(first: int, last: int, text: str, offsets: Sequence[int]) -> tuple[int, int]:
    """The rows extended to whole words with the space before them, as tokenizers cut text.

    Else a word that a draft spells in odd tokens would be corrected in odd ones.
    """
    while first and text[offsets[first] :][:1].isalnum() and _leads(text[offsets[first] - 1]):
        first -= 1
    while text[offsets[last] :][:1].isalnum() and text[offsets[last] - 1].isalnum():
        last += 1
    return first, last


def _leads(character: str) -> bool:
    return character == " " or character.isalnum()


def _judge(
    labels: list[int], first: int, last: int, new: list[int], fixed: str, plain: Tokenizer | None
) -> Kind | None:
    """What speaks against `new` for rows first to last. `plain` is given where the labels are what
    the tokenizer makes of their text: so they have to stay."""
    if len(new) != last - first:
        return "unequal"
    if new == labels[first:last]:
        return "identical"
    if plain is not None:
        whole = [*labels[:first], *new, *labels[last:]]
        if plain.encode(fixed, add_special_tokens=False).ids != whole:
            return "unaligned"
    return None

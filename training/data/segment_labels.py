"""Corrections of an answer: where the wrong segments lie, and the labels that correct them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from training.data.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from training.data.conversation import Pair
    from training.data.problems import Kind

Occurrences = Literal["unique", "first", "all"]
"""What a pair without `start` means whose org occurs several times in the answers: `unique`
leaves it out, because a wrong guess would teach the model to change a right word; `first` and
`all` take what they say. Several pairs with the same org, as many as occurrences, go to them in
order whatever the policy."""

_UNSPACED = 0x2E80
"""Code points from here on belong mostly to scripts without spaces, where any place may be a
word boundary."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A located pair: characters [start, end) of answer number `answer` become `target`."""

    answer: int
    start: int
    end: int
    target: str


@dataclass(frozen=True, slots=True)
class Correction:
    """An answer's ids, the ids it should have had (as many), and flags on the wrong segments."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    revise: tuple[bool, ...]


def locate(
    answers: Sequence[str], pairs: Sequence[Pair], where: str, occurrences: Occurrences = "unique"
) -> tuple[list[Segment], list[Problem]]:
    """Find every pair in the answers, as whole words or where its `start` says; and the pairs
    that were left out.

    Segments do not overlap: of two that would, the pair listed first stays.
    """
    segments: list[Segment] = []
    problems: list[Problem] = []

    def leave_out(kind: Kind, pair: Pair) -> None:
        problems.append(Problem(kind, where, f"{pair.org!r} -> {pair.target!r}"))

    for number, pair in enumerate(pairs):
        if pair.org == pair.target:
            leave_out("identical", pair)
            continue
        if pair.start is None:
            places = _occurrences(answers, pair.org)
        else:
            at = pair.start
            places = [(i, at) for i, text in enumerate(answers) if text.startswith(pair.org, at)]
        if not places:
            leave_out("missing", pair)
            continue
        if len(places) > 1:
            same = [i for i, p in enumerate(pairs) if p.org == pair.org and p.start is None]
            if len(same) == len(places):
                places = [places[same.index(number)]]
            elif occurrences == "first":
                places = places[:1]
            elif occurrences == "unique":
                leave_out("ambiguous", pair)
                continue
        wanted = [Segment(i, at, at + len(pair.org), pair.target) for i, at in places]
        free = [segment for segment in wanted if not any(_overlap(segment, s) for s in segments)]
        segments += free
        if not free:
            leave_out("overlapping", pair)
    return segments, problems


def correct(
    answer: str, segments: Sequence[Segment], tokenizer: Tokenizer, where: str
) -> tuple[Correction, list[Problem]]:
    """Ids of an answer, the ids corrected, and the segments that could not be used.

    A segment is used if correcting it in the text leaves the number of tokens as it was and
    changes no token outside the segment. Its tokens are found by their characters, so it may
    stand anywhere, at the start of the answer too.
    """
    wrong = tokenizer.encode(answer, add_special_tokens=False)
    labels = list(wrong.ids)
    revise = [False] * len(labels)
    problems: list[Problem] = []
    text = answer
    # From the right, so that the positions of the segments still to come stay valid.
    for segment in sorted(segments, key=lambda segment: -segment.start):
        fixed = text[: segment.start] + segment.target + text[segment.end :]
        ids = tokenizer.encode(fixed, add_special_tokens=False).ids
        inside = {
            row
            for row, (start, end) in enumerate(wrong.offsets)
            if start < segment.end and end > segment.start
        }
        kind: Kind | None = None
        if len(ids) != len(labels):
            kind = "unequal"
        elif ids == labels:
            kind = "identical"
        elif any(ids[row] != labels[row] for row in range(len(ids)) if row not in inside):
            kind = "unaligned"
        if kind:
            org = answer[segment.start : segment.end]
            problems.append(Problem(kind, where, f"{org!r} -> {segment.target!r}"))
            continue
        text, labels = fixed, ids
        for row in inside:
            revise[row] = True
    return Correction(tuple(wrong.ids), tuple(labels), tuple(revise)), problems


def _occurrences(answers: Sequence[str], org: str) -> list[tuple[int, int]]:
    """Answer and character of every whole-word occurrence, without overlaps."""
    places = []
    for index, answer in enumerate(answers):
        at = answer.find(org)
        while at >= 0:
            end = at + len(org)
            if not (_joined(answer, at) or _joined(answer, end)):
                places.append((index, at))
                at = answer.find(org, end)
            else:
                at = answer.find(org, at + 1)
    return places


def _joined(text: str, at: int) -> bool:
    """Whether the cut before character `at` would go through a word."""
    if at in (0, len(text)):
        return False
    before, after = text[at - 1], text[at]
    return (
        before.isalnum() and after.isalnum() and ord(before) < _UNSPACED and ord(after) < _UNSPACED
    )


def _overlap(one: Segment, other: Segment) -> bool:
    return one.answer == other.answer and one.start < other.end and other.start < one.end

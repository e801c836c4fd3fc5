"""Templates in token ids: what is fixed, what is to be filled, and how choices are compared.

A choice is made before the holes of tokens are filled, from the first hole to the last. Its
probability is the product of its tokens' probabilities, each with those before it in place and
those behind it masked, on a canvas with as many tokens as it has; probabilities of a hole's
choices are divided by their sum. Choices of as many tokens and of the same first ones share the
forward pass. Holes that are not filled yet stand as masks, a choice as many as most of its options
have, the fewer of two.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rediff_model.sampling.outputs import Filled

if TYPE_CHECKING:
    from collections.abc import Sequence


class TemplateTooLong(ValueError):
    """More tokens than the canvas has, or more passes than are allowed."""


@dataclass(frozen=True, slots=True)
class Masks:
    """A hole of so many tokens."""

    count: int
    opens_with_space: bool = False
    """Its first token begins with a space."""


@dataclass(frozen=True, slots=True)
class Choices:
    """A hole for one of several texts."""

    options: tuple[tuple[int, ...], ...]

    @property
    def usual_length(self) -> int:
        """Tokens of most options; of two numbers as common the smaller."""
        counts = Counter(map(len, self.options))
        return min(counts, key=lambda length: (-counts[length], length))

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The forward passes that compare the options, shorter ones first."""
        found: dict[tuple[int, tuple[int, ...]], dict[int, None]] = {}
        for option in sorted(self.options, key=len):
            for place, token in enumerate(option):
                found.setdefault((len(option), option[:place]), {})[token] = None
        return tuple(Pass(*key, tuple(tokens)) for key, tokens in found.items())


Part = tuple[int, ...] | Masks | Choices
"""Fixed ids, or a hole."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass for a hole of choices."""

    length: int
    """Tokens of the options that it is for."""
    prefix: tuple[int, ...]
    """Their first tokens; the others are masked."""
    tokens: tuple[int, ...]
    """What may come next."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A template whose canvas is settled."""

    ids: tuple[int, ...]
    """Masks where a hole is not filled; stops from the end on."""
    free: tuple[bool, ...]
    """Where masks are to be filled."""
    opening: tuple[bool, ...]
    """Where the token must begin with a space."""
    spans: tuple[tuple[int, int], ...]
    """First position of each hole, and the first behind it."""
    end: int
    """Positions before the stop."""


@dataclass(frozen=True, slots=True)
class Template:
    """Fixed ids and holes in their order."""

    parts: tuple[Part, ...]

    @staticmethod
    def check(parts: Sequence[Part], most: int, most_passes: int) -> None:
        """Raise TemplateTooLong if parts with the longest options have more than `most` tokens, a
        stop included, or if their choices take more than `most_passes` passes."""
        tokens, passes = _longest(parts), sum(len(one.passes) for one in _choices(parts))
        if tokens >= most:
            raise TemplateTooLong(
                f"up to here it has {tokens} tokens, and a canvas of {most} takes {most - 1}"
            )
        if passes > most_passes:
            raise TemplateTooLong(
                f"the choices up to here take {passes} passes, and {most_passes} are allowed"
            )

    @property
    def canvas_length(self) -> int:
        """Tokens with the longest options, and a stop."""
        return _longest(self.parts) + 1

    @property
    def masks(self) -> int:
        """Tokens of all holes without choices."""
        return sum(one.count for one in self.parts if isinstance(one, Masks))

    @property
    def ids(self) -> tuple[int, ...]:
        """All that it names."""
        found: list[int] = []
        for part in self.parts:
            if isinstance(part, Choices):
                found += (token for option in part.options for token in option)
            elif not isinstance(part, Masks):
                found += part
        return tuple(found)

    @property
    def holes(self) -> tuple[Masks | Choices, ...]:
        return tuple(one for one in self.parts if isinstance(one, (Masks, Choices)))

    @property
    def choices(self) -> tuple[Choices, ...]:
        return tuple(_choices(self.parts))

    @property
    def passes(self) -> int:
        """Forward passes that compare choices."""
        return sum(len(one.passes) for one in self.choices)

    def layout(self, chosen: Sequence[tuple[int, ...]], mask: int, stop: int) -> Layout:
        """The canvas with the first choices made, `chosen`; what an option stands as may hold
        masks."""
        ids: list[int] = []
        free: list[bool] = []
        opening: list[bool] = []
        spans: list[tuple[int, int]] = []
        made = 0
        for part in self.parts:
            if isinstance(part, Masks):
                new, fills = (mask,) * part.count, True
            elif isinstance(part, Choices):
                unknown = (mask,) * part.usual_length
                new, fills = (chosen[made] if made < len(chosen) else unknown), False
                made += 1
            else:
                new, fills = part, False
            if isinstance(part, (Masks, Choices)):
                spans.append((len(ids), len(ids) + len(new)))
            opens = isinstance(part, Masks) and part.opens_with_space
            ids += new
            free += [fills] * len(new)
            opening += [opens, *[False] * (len(new) - 1)] if new else []
        end = len(ids)
        rest = self.canvas_length - end
        return Layout(
            (*ids, *(stop,) * rest),
            (*free, *(False,) * rest),
            (*opening, *(False,) * rest),
            tuple(spans),
            end,
        )


@dataclass(frozen=True, slots=True)
class Choosing:
    """Where a request is in its choices: the passes done, and what they gave."""

    template: Template
    chances: tuple[tuple[float, ...], ...] = ()
    """Probability of each option of the choices made."""
    known: tuple[dict[int, float], ...] = ()
    """What the passes of the current choice gave: log-probabilities by token."""
    passed: int = 0
    """Forward passes in all."""

    @property
    def hole(self) -> Choices | None:
        """The choice to be made; None if all are."""
        made, choices = len(self.chances), self.template.choices
        return choices[made] if made < len(choices) else None

    @property
    def chosen(self) -> tuple[tuple[int, ...], ...]:
        """The choices made."""
        made = zip(self.template.choices, self.chances, strict=False)
        return tuple(hole.options[likeliest(chances)] for hole, chances in made)

    @property
    def next_pass(self) -> Pass:
        assert self.hole is not None
        return self.hole.passes[len(self.known)]

    def layout(self, mask: int, stop: int) -> Layout:
        """The canvas of the next pass, or that with all choices made."""
        if self.hole is None:
            return self.template.layout(self.chosen, mask, stop)
        asked = self.next_pass
        trial = (*asked.prefix, *(mask,) * (asked.length - len(asked.prefix)))
        return self.template.layout((*self.chosen, trial), mask, stop)

    def position(self, layout: Layout) -> int:
        """Where the next pass asks for a token."""
        holes = enumerate(self.template.holes)
        place = [n for n, one in holes if isinstance(one, Choices)][len(self.chances)]
        return layout.spans[place][0] + len(self.next_pass.prefix)

    def after(self, log_chances: Sequence[float]) -> Choosing:
        """After the next pass gave these log-probabilities of its tokens."""
        hole = self.hole
        assert hole is not None
        known = (*self.known, dict(zip(self.next_pass.tokens, log_chances, strict=True)))
        passed = self.passed + 1
        if len(known) < len(hole.passes):
            return replace(self, known=known, passed=passed)
        at = {(one.length, one.prefix): n for n, one in enumerate(hole.passes)}
        logs = [
            [known[at[len(option), option[:n]]][token] for n, token in enumerate(option)]
            for option in hole.options
        ]
        chances = shares([math.fsum(one) for one in logs])
        return replace(self, chances=(*self.chances, chances), known=(), passed=passed)

    def start(self, layout: Layout) -> tuple[list[float], list[int]]:
        """Confidence of each position when all choices are made, and the step of its value.

        They are 1 and 0 of what is fixed, 0 and 0 of what is to be filled, and of each token of a
        choice the choice's probability.
        """
        confidences = [float(not free) for free in layout.free]
        steps = [0] * len(layout.ids)
        step = 0
        made = iter(self.chances)
        for (first, last), hole in zip(layout.spans, self.template.holes, strict=True):
            if isinstance(hole, Choices):
                step += len(hole.passes)
                confidences[first:last] = [max(next(made))] * (last - first)
                steps[first:last] = [step] * (last - first)
        return confidences, steps

    def filled(self, layout: Layout) -> tuple[Filled, ...]:
        """The holes of the finished canvas."""
        chances = iter(self.chances)
        return tuple(
            Filled(*span, next(chances) if isinstance(hole, Choices) else None)
            for span, hole in zip(layout.spans, self.template.holes, strict=True)
        )


def likeliest(chances: Sequence[float]) -> int:
    """The first of the highest."""
    return max(range(len(chances)), key=lambda n: chances[n])


def shares(logs: Sequence[float]) -> tuple[float, ...]:
    """Probabilities of these logarithms, divided by their sum; alike if all are impossible."""
    highest = max(logs)
    if highest == -math.inf:
        return (1 / len(logs),) * len(logs)
    weights = [math.exp(one - highest) for one in logs]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def _longest(parts: Sequence[Part]) -> int:
    total = 0
    for part in parts:
        if isinstance(part, Masks):
            total += part.count
        elif isinstance(part, Choices):
            total += max(map(len, part.options))
        else:
            total += len(part)
    return total


def _choices(parts: Sequence[Part]) -> list[Choices]:
    return [one for one in parts if isinstance(one, Choices)]

"""What sampling gives back: captions, and the changes of each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LEAST = 1e-300
"""A confidence below this counts as this much where logarithms are added."""

LEVEL = 1e-6
"""Joint confidences (logarithms) that differ by less are the same, and the later canvas wins."""

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that a position might have held."""

    id: int
    confidence: float
    """Its probability."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A hole of a template, filled."""

    first: int
    """Its first position on the canvas."""
    last: int
    """The first behind it."""
    chances: tuple[float, ...] | None = None
    """Probabilities of its choices, in their order; None of a hole of tokens."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished caption. Lists run over canvas positions."""

    ids: tuple[int, ...]
    """Caption tokens up to, not including, the stop."""
    canvas: tuple[int, ...]
    """All ids of the canvas at the end."""
    steps: int
    """Forward passes."""
    revisions: int
    """Tokens of the canvas that were replaced by another one after they had been revealed."""
    confidences: tuple[float, ...]
    """Probability of each token when it was last written or confirmed; 0 if it never was."""
    revision_counts: tuple[int, ...]
    """Revisions of each position."""
    flips: int
    """Revisions that brought back the token before the last one."""
    step_map: tuple[int, ...]
    """The step in which each position took its last value; 0 is before the first."""
    finish_reason: FinishReason
    holes: tuple[Filled, ...] = ()
    """Of a template, in its order."""
    alternatives: tuple[tuple[Alternative, ...], ...] = ()
    """Of each position the likeliest tokens, the best first, when its confidence was taken; none of
    what a template fixes or chooses. Empty unless asked for."""


@dataclass(frozen=True, slots=True)
class Change:
    """A position whose id changed in a step."""

    position: int
    id: int
    confidence: float
    kind: Literal["reveal", "revise"]
    was: int


@dataclass(frozen=True, slots=True)
class StepEvent:
    """What one step did to one request."""

    request: int
    """The caller's number of the request."""
    step: int
    """Forward passes of this request so far."""
    steps: int
    """Forward passes planned at most."""
    masked: int
    """Positions of the canvas still masked."""
    changed: tuple[Change, ...]
    canvas: tuple[int, ...]
    done: bool
    holes: tuple[tuple[int, int], ...] = ()
    """First position of each hole of a template, and the first behind it."""
    choosing: bool = False
    """A template's choices are compared: positions may still move."""

"""What was wrong with the data: counted, kept with file and line, never fatal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Kind = Literal[
    "malformed",
    "image",
    "pairless",
    "truncated",
    "identical",
    "missing",
    "ambiguous",
    "overlapping",
    "unequal",
    "unaligned",
]
"""Rows that cannot be used: `malformed`, `image` (broken or missing picture), `pairless` (no pair
of a revise row survived), `truncated` (nothing trainable left within the maximum length).
Pairs that are left out while their row may stay: `identical` (org is target), `missing` (org is not
in the answer), `ambiguous` (it is there more than once), `overlapping`, `unequal` (other token
count), `unaligned` (the correction changes tokens outside the segment)."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. `where` is `file:line`, or `file:member` for an archive."""

    kind: Kind
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.reason}"


class BadRow(ValueError):
    """A row that cannot be trained on; carries its `Problem`."""

    def __init__(self, kind: Kind, where: str, reason: str) -> None:
        super().__init__(f"{where}: {kind}: {reason}")
        self.problem = Problem(kind, where, reason)

    def __reduce__(self) -> tuple[type[BadRow], tuple[Kind, str, str]]:
        return BadRow, (self.problem.kind, self.problem.where, self.problem.reason)


@dataclass(slots=True)
class Report:
    """Counts by kind, and the first `limit` findings in full. The same finding counts once."""

    limit: int = 1000
    counts: Counter[Kind] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    told: int = 0
    """How many of these `news` has given out."""
    _seen: set[Problem] = field(default_factory=set, repr=False)

    def add(self, problem: Problem) -> bool:
        """Count a finding; false if it was known, as happens when a row comes up again."""
        if problem in self._seen:
            return False
        self._seen.add(problem)
        self.counts[problem.kind] += 1
        if len(self.problems) < self.limit:
            self.problems.append(problem)
        return True

    def extend(self, problems: Iterable[Problem]) -> None:
        """Count several findings, such as those a loader process hands over with a batch."""
        for problem in problems:
            self.add(problem)

    def news(self) -> list[Problem]:
        """The kept findings since the last call, such as to log them."""
        found = self.problems[self.told :]
        self.told = len(self.problems)
        return found

    def to_json(self) -> dict[str, Any]:
        """Counts by kind and the kept findings, for a file beside the checkpoint."""
        return {
            "counts": {kind: self.counts[kind] for kind in KINDS if self.counts[kind]},
            "problems": [
                {"kind": problem.kind, "where": problem.where, "reason": problem.reason}
                for problem in self.problems
            ],
        }

    def recall(self, noted: Mapping[str, Any]) -> None:
        """Take up what `to_json` gave in an earlier run; what both found counts once.

        Of findings beyond the limit only the numbers are known, so the larger one is kept.

        Raises:
            KeyError or TypeError: it is no such report.
        """
        for problem in noted["problems"]:
            self.add(Problem(problem["kind"], problem["where"], problem["reason"]))
        for kind in KINDS:
            if count := noted["counts"].get(kind, 0):
                self.counts[kind] = max(self.counts[kind], count)

    def summary(self) -> str:
        """One line: `3 malformed, 1 image`, or `no problems`."""
        parts = [f"{self.counts[kind]} {kind}" for kind in KINDS if self.counts[kind]]
        return ", ".join(parts) or "no problems"


def listed(counts: Mapping[str, int]) -> str:
    """Counts of outcomes as text, such as "3 hopeless, 1 right"; those of pairs are left out."""
    named = counts.items()
    return ", ".join(f"{n} {name}" for name, n in named if n and not name.startswith("pair_"))

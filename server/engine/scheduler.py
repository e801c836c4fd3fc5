"""Decides who joins and who leaves at each step. No torch in here, and no clock of its own."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import copysign, log2
from typing import TYPE_CHECKING, Literal

from server.engine.priority_queue import Heap
from server.engine.row_budget import Slots

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from server.engine.request import Job

AGEING_SECONDS = 10.0
"""Waiting that makes up for a priority of 1; each doubling of the priority costs as much again."""

RECOVERY_STEPS = 256
"""Steps after which a lowered budget grows again."""


class QueueOverflow(Exception):
    """As many requests wait as may."""


class TooLarge(ValueError):
    """A request that no budget allows; the message names the numbers."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much runs and waits at once."""

    places: int
    """Requests in a step."""
    rows: int
    """Prompt and canvas rows of everything that runs."""
    prefill_rows: int
    """Prompt rows that join in one step, unless a single prompt has more.

    Rows of a prompt attend to each other in both directions, so a prompt cannot be computed in
    pieces: what bounds a step is how many prompts it starts.
    """
    waiting: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What changes before the next step."""

    leaving: frozenset[int]
    """Numbers of running requests that were given up or are too late."""
    expired: tuple[Job, ...]
    """Requests that are too late, running or not, and want to be told."""
    joining: tuple[Job, ...]
    """In order of admission."""


class Scheduler:
    """Waiting and running requests under limits.

    The order is that of `urgency`, and nobody overtakes: while the first in line does not fit,
    nobody joins. Since every request that runs ends, everybody has a turn.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots = Slots(limits.places, limits.rows)
        self._numbers = itertools.count()
        self._jobs: dict[int, Job] = {}
        self._order = Heap()
        self._deadlines = Heap()
        self._running: dict[int, Job] = {}
        self._gone: set[int] = set()
        self._steps_until_raise = RECOVERY_STEPS

    @property
    def running(self) -> Mapping[int, Job]:
        """By number, the newest last."""
        return self._running

    @property
    def waiting(self) -> int:
        return len(self._order)

    @property
    def used_rows(self) -> int:
        return self._slots.used

    @property
    def row_limit(self) -> int:
        return self._slots.limit

    def add(self, job: Job, now: float) -> None:
        """Queue a job; gives it its number.

        Raises:
            QueueOverflow: as many wait as may.
            TooLarge: it takes more rows than the whole budget.
        """
        if job.rows > self._limits.rows:
            raise TooLarge(
                f"the request takes {job.rows} rows of prompt and canvas, "
                f"the limit is {self._limits.rows}"
            )
        if len(self._order) >= self._limits.waiting:
            raise QueueOverflow(f"{self._limits.waiting} requests are waiting")
        job.number = next(self._numbers)
        job.urgency = urgency(job.priority, now)
        self.put_back(job)

    def cancel(self, job: Job) -> Literal["waiting", "running"] | None:
        """Give up a job; a running one leaves with the next decision.

        Returns what it was doing; None if it is not here any more.
        """
        if job.number not in self._jobs:
            return None
        running = job.number in self._running
        if running:
            self._gone.add(job.number)
        self._forget(job.number)
        return "running" if running else "waiting"

    def decide(self, now: float) -> Decision:
        """Who leaves and who joins before the step that starts now."""
        expired = tuple(self._expire(now))
        leaving, self._gone = frozenset(self._gone), set()
        self._recover()
        return Decision(leaving, expired, tuple(self._admit()))

    def finish(self, numbers: Iterable[int]) -> None:
        """These requests ended."""
        for number in numbers:
            self._forget(number)

    def shed(self) -> Job:
        """Take the newest running request out and lower the budget to what is left.

        The caller drops it from the batch, and fails it or gives it to `put_back`.
        """
        number, job = next(reversed(self._running.items()))
        self._forget(number)
        if self._running:
            self._slots.lower()
            self._steps_until_raise = RECOVERY_STEPS
        return job

    def put_back(self, job: Job) -> None:
        """Let a job that was shed wait again, at its place in the line."""
        self._jobs[job.number] = job
        self._order.push(job.urgency, job.number)
        if job.deadline is not None:
            self._deadlines.push(job.deadline, job.number)

    def clear(self) -> list[Job]:
        """Forget everybody; the jobs that were here."""
        jobs = list(self._jobs.values())
        self.finish([job.number for job in jobs])
        self._gone = set()
        return jobs

    def _expire(self, now: float) -> Iterable[Job]:
        while (first := self._deadlines.first()) is not None and first[0] <= now:
            number = first[1]
            job = self._jobs[number]
            if number in self._running:
                self._gone.add(number)
            self._forget(number)
            yield job

    def _admit(self) -> Iterable[Job]:
        prompt_rows = 0
        while (first := self._order.first()) is not None:
            job = self._jobs[first[1]]
            prompt_rows += job.prompt_rows
            crowded = prompt_rows > job.prompt_rows and prompt_rows > self._limits.prefill_rows
            if crowded or not self._slots.fit(job.rows):
                return
            self._order.discard(job.number)
            self._slots.take(job.number, job.rows)
            self._running[job.number] = job
            yield job

    def _forget(self, number: int) -> None:
        if self._jobs.pop(number, None) is None:
            return
        self._order.discard(number)
        self._deadlines.discard(number)
        if self._running.pop(number, None) is not None:
            self._slots.free(number)

    def _recover(self) -> None:
        if self._slots.limit < self._limits.rows:
            self._steps_until_raise -= 1
            if self._steps_until_raise == 0:
                self._slots.raise_again()
                self._steps_until_raise = RECOVERY_STEPS


def urgency(priority: int, now: float) -> float:
    """What the line is ordered by, the smallest first: the time of arrival, moved by priority.

    The key of a waiting request never changes, and still nobody starves: a priority is worth a
    fixed time, at most some minutes for the largest numbers, and later arrivals come after that.
    """
    return now + AGEING_SECONDS * copysign(log2(1 + abs(priority)), priority)

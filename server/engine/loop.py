"""One step after another: take arrivals, let go, join, compute, tell."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, get_args

from server.engine.request import Failure, FailureKind, StepTrace
from server.engine.scheduler import QueueOverflow, TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from server.engine.request import Event, Job, Opens, Outcome
    from server.engine.scheduler import Scheduler
    from server.metrics import Metrics

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 3
"""Steps that fail one after the other before the model has to show that it still runs."""


class Loop:
    """Scheduler and runner in step. `submit` and `cancel` from any thread, the rest from one."""

    def __init__(
        self,
        runner: Opens,
        scheduler: Scheduler,
        metrics: Metrics,
        on_step: Callable[[StepTrace], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        probe: Callable[[], None] = lambda: None,
    ) -> None:
        """`probe` runs the model by itself, and raises if it cannot."""
        self._runner = runner
        self._probe = probe
        self._scheduler = scheduler
        self._metrics = metrics
        self._on_step = on_step
        self._clock = clock
        self._batch = runner.open()
        self._arrived: deque[Job] = deque()
        self._given_up: deque[Job] = deque()
        self._computing = 0.0
        self._failures = 0
        self.request_seconds = 0.0
        """Moving average of the time from a request's first step to its caption."""
        metrics.row_budget.set(scheduler.row_limit)
        # A rate over a series that is not there yet is no zero.
        for kind in get_args(FailureKind):
            metrics.errors.labels(kind=kind)
        for where in ("waiting", "running"):
            metrics.cancellations.labels(where=where)

    @property
    def waiting(self) -> int:
        """Requests that have not joined yet."""
        return len(self._arrived) + self._scheduler.waiting

    @property
    def running(self) -> int:
        return len(self._scheduler.running)

    @property
    def idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not (self._arrived or self._given_up or self.waiting or self.running)

    def submit(self, job: Job) -> None:
        """Take in a job; its events follow from `step`."""
        job.submitted_at = self._clock()
        self._arrived.append(job)

    def cancel(self, job: Job) -> None:
        """Give up a job: it emits nothing more and is gone by the next step."""
        job.cancelled = True
        self._given_up.append(job)

    def step(self) -> None:
        """One step of everything that runs, with those who join now."""
        began, self._computing = self._clock(), 0.0
        self._take_arrivals(began)
        decision = self._scheduler.decide(began)
        self._drop(decision.leaving, decision.joining)
        self._fail(decision.expired, "deadline")
        self._join(decision.joining, began)
        outcome = self._compute()
        jobs = dict(self._scheduler.running)
        if outcome is not None:
            self._tell(outcome, jobs)
            self._count(outcome, len(jobs), self._clock() - began)
        self._metrics.rows.set(self._scheduler.used_rows)
        self._metrics.row_budget.set(self._scheduler.row_limit)
        if self._on_step is not None and outcome is not None:
            trace = StepTrace(
                began=began,
                seconds=self._clock() - began,
                computing=self._computing,
                waiting=self._scheduler.waiting,
                joined=tuple(job.number for job in decision.joining if job.number in jobs),
                running=tuple(jobs),
                refreshed=outcome.refreshed,
            )
            self._on_step(trace)

    def fail_all(self) -> None:
        """Tell everybody who is left that there will be no caption."""
        left = [*self._scheduler.clear(), *self._arrived]
        self._arrived.clear()
        self._fail(left, "engine")

    def _take_arrivals(self, now: float) -> None:
        while self._arrived:
            job = self._arrived.popleft()
            if job.cancelled:
                self._metrics.cancellations.labels(where="waiting").inc()
                continue
            try:
                self._scheduler.add(job, now)
            except QueueOverflow as error:
                self._fail([job], "queue", str(error))
            except TooLarge as error:
                self._fail([job], "too_large", str(error))
        while self._given_up:
            job = self._given_up.popleft()
            where = self._scheduler.cancel(job)
            if where is not None:
                self._metrics.cancellations.labels(where=where).inc()

    def _join(self, jobs: tuple[Job, ...], now: float) -> None:
        """Bring admitted jobs into the batch; one that cannot be started fails alone."""
        left, together = list(jobs), True
        while left:
            part = left if together else left[:1]
            started = self._clock()
            try:
                self._batch.join({job.number: job for job in part})
            except MemoryError:
                # Nobody is newer than those who are left to join, the last of them the newest.
                left.remove(self._shed(left))
            except Exception:
                if len(part) > 1:
                    together = False
                    continue
                logger.exception("a request could not be started")
                self._scheduler.finish([part[0].number])
                self._fail(part, "request")
                left = left[1:]
            else:
                for job in part:
                    if not job.started_at:
                        # One that comes back after memory ran out has been counted.
                        self._metrics.queue_time.observe(now - job.submitted_at)
                    job.started_at = now
                left = left[len(part) :]
            finally:
                self._computing += self._clock() - started

    def _compute(self) -> Outcome | None:
        """The batch's step. Whatever it raises fails those in it and no others."""
        while self._scheduler.running:
            started = self._clock()
            try:
                outcome = self._batch.step()
            except MemoryError:
                self._shed()
            except Exception:
                self._fail_batch()
            else:
                self._failures = 0
                return outcome
            finally:
                self._computing += self._clock() - started
        return None

    def _drop(self, numbers: Collection[int], joining: Collection[Job] = ()) -> None:
        """Take jobs out of the batch; where that raises, the others in it fail with it."""
        try:
            self._batch.drop(numbers)
        except Exception:
            self._fail_batch(joining)

    def _fail_batch(self, joining: Collection[Job] = ()) -> None:
        """Fail everybody in the batch for the exception at hand, and open another one.

        `joining` are admitted, and not in it yet. After some failures in a row the model is tried
        by itself: on a device that is broken for good this raises, which ends the engine.
        """
        failed = [job for job in self._scheduler.running.values() if job not in joining]
        logger.exception("a step of %d requests failed", len(failed))
        self._scheduler.finish([job.number for job in failed])
        self._fail(failed, "step")
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW:
            self._failures = 0
            self._probe()
        self._batch = self._runner.open()

    def _shed(self, joining: Collection[Job] = ()) -> Job:
        """Out of memory: the newest request makes room, to come back when there is some."""
        alone = len(self._scheduler.running) == 1
        job = self._scheduler.shed()
        logger.warning(
            "out of memory: request %d is taken out, the budget is %d rows",
            job.number,
            self._scheduler.row_limit,
        )
        self._metrics.shed.inc()
        self._drop([job.number], joining)
        if alone or (job.wants_steps and job.stepped):
            # What a caller has seen of a caption must not begin again.
            self._fail([job], "memory")
        else:
            self._scheduler.put_back(job)
        return job

    def _tell(self, outcome: Outcome, jobs: Mapping[int, Job]) -> None:
        """Hand out events; whoever has a caption, or none to hope for, leaves."""
        now = self._clock()
        broken = [jobs[number] for number in outcome.broken]
        self._scheduler.finish([*outcome.captions, *outcome.broken])
        for job in jobs.values():
            if not job.stepped:
                job.stepped = True
                arrived = job.submitted_at if job.arrived_at is None else job.arrived_at
                self._metrics.first_step_time.observe(now - arrived)
        for number, event in outcome.steps:
            self._emit(jobs[number], event)
        for number, caption in outcome.captions.items():
            self._emit(jobs[number], caption)
            taken = now - jobs[number].started_at
            self.request_seconds += 0.1 * (taken - self.request_seconds)
        if broken:
            logger.error("the model gave %d requests numbers that are not finite", len(broken))
            self._fail(broken, "numbers")
            self._drop(outcome.broken)

    def _count(self, outcome: Outcome, requests: int, seconds: float) -> None:
        metrics = self._metrics
        metrics.step_time.observe(seconds)
        metrics.batch_size.observe(requests)
        metrics.canvas_rows.inc(outcome.canvas_rows)
        metrics.refreshes.inc(len(outcome.refreshed))
        metrics.step_revealed.observe(outcome.revealed)
        metrics.step_revised.observe(outcome.revised)

    def _fail(self, jobs: Iterable[Job], kind: FailureKind, message: str = "") -> None:
        for job in jobs:
            if not job.cancelled:
                self._metrics.errors.labels(kind=kind).inc()
                self._emit(job, Failure(kind, message))

    def _emit(self, job: Job, event: Event) -> None:
        """Tell a job; one that cannot be told is given up, and hurts nobody else."""
        if job.cancelled:
            return
        try:
            job.emit(event)
        except Exception:
            logger.exception("a request could not be told")
            self._metrics.errors.labels(kind="request").inc()
            self.cancel(job)

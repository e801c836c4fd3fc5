"""The scheduler by itself: order, budget, deadlines, cancellation, and what a decision costs."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from engine_fakes import job
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine.scheduler import (
    AGEING_SECONDS,
    RECOVERY_STEPS,
    Decision,
    Limits,
    QueueOverflow,
    Scheduler,
    TooLarge,
    urgency,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from server.engine.request import Job

LIMITS = Limits(places=3, rows=100, prefill_rows=40, waiting=50)


def test_first_come_first_served_up_to_the_places() -> None:
    scheduler = Scheduler(LIMITS)
    jobs = [job() for _ in range(5)]
    for place, one in enumerate(jobs):
        scheduler.add(one, float(place))
    assert scheduler.decide(9.0).joining == tuple(jobs[:3])
    assert scheduler.decide(9.0).joining == ()
    scheduler.finish([jobs[1].number])
    assert scheduler.decide(9.0).joining == (jobs[3],)
    assert (len(scheduler.running), scheduler.waiting) == (3, 1)


def test_a_lower_priority_number_goes_first() -> None:
    scheduler = Scheduler(replace(LIMITS, places=1))
    jobs = [job(priority=priority) for priority in (5, 0, -3, 2**31, 0)]
    for one in jobs:
        scheduler.add(one, 0.0)
    order = []
    while scheduler.waiting:
        [taken] = scheduler.decide(0.0).joining
        order.append(taken)
        scheduler.finish([taken.number])
    assert order == [jobs[place] for place in (2, 1, 4, 0, 3)]


def test_who_waits_long_enough_is_overtaken_by_nobody() -> None:
    worst, best = 2**31, -(2**31)
    assert urgency(1, 0.0) == AGEING_SECONDS
    assert urgency(worst, 0.0) < urgency(best, 64 * AGEING_SECONDS)
    scheduler = Scheduler(replace(LIMITS, places=1))
    patient = job(priority=worst)
    scheduler.add(patient, 0.0)
    scheduler.add(job(priority=best), 64 * AGEING_SECONDS)
    assert scheduler.decide(64 * AGEING_SECONDS).joining == (patient,)


def test_the_row_budget_counts_prompt_canvas_and_twin() -> None:
    assert job(10, 20).rows == 30
    assert job(10, 20, cfg_scale=1.0).rows == 60
    scheduler = Scheduler(LIMITS)
    jobs = [job(20, 20), job(1, 40), job(1, 40)]
    for one in jobs:
        scheduler.add(one, 0.0)
    assert scheduler.decide(0.0).joining == tuple(jobs[:2])
    assert scheduler.used_rows == 81


def test_while_the_first_in_line_does_not_fit_nobody_overtakes_it() -> None:
    scheduler = Scheduler(LIMITS)
    running, large, small = job(20, 40), job(20, 60), job(1, 1)
    for one in (running, large, small):
        scheduler.add(one, 0.0)
    assert scheduler.decide(0.0).joining == (running,)
    assert scheduler.decide(0.0).joining == ()
    scheduler.finish([running.number])
    assert scheduler.decide(0.0).joining == (large, small)


def test_prompts_that_join_in_a_step_are_bounded_but_a_long_one_gets_through() -> None:
    scheduler = Scheduler(replace(LIMITS, rows=1000))
    jobs = [job(30, 1), job(30, 1), job(90, 1)]
    for one in jobs:
        scheduler.add(one, 0.0)
    assert [scheduler.decide(0.0).joining for _ in range(3)] == [(one,) for one in jobs]


def test_a_full_queue_and_an_impossible_size_are_refused() -> None:
    scheduler = Scheduler(replace(LIMITS, waiting=1))
    with pytest.raises(TooLarge, match="takes 101 rows of prompt and canvas, the limit is 100"):
        scheduler.add(job(1, 100), 0.0)
    scheduler.add(job(), 0.0)
    with pytest.raises(QueueOverflow, match="1 requests are waiting"):
        scheduler.add(job(), 0.0)
    scheduler.decide(0.0)
    scheduler.add(job(), 0.0)


def test_cancelled_work_is_gone_by_the_next_step() -> None:
    scheduler = Scheduler(replace(LIMITS, places=1))
    running, waiting, other = job(), job(), job()
    for one in (running, waiting, other):
        scheduler.add(one, 0.0)
    scheduler.decide(0.0)
    scheduler.cancel(waiting)
    scheduler.cancel(running)
    scheduler.cancel(running)
    assert scheduler.decide(0.0) == Decision(frozenset({running.number}), (), (other,))


def test_deadlines_end_waiting_and_running_requests() -> None:
    scheduler = Scheduler(replace(LIMITS, places=1))
    running, waiting, patient = job(deadline=5.0), job(deadline=4.0), job()
    for one in (running, waiting, patient):
        scheduler.add(one, 0.0)
    assert scheduler.decide(3.9).expired == ()
    assert scheduler.decide(4.0) == Decision(frozenset(), (waiting,), ())
    assert scheduler.decide(5.0) == Decision(frozenset({running.number}), (running,), (patient,))
    assert scheduler.decide(99.0) == Decision(frozenset(), (), ())


def test_shedding_takes_the_newest_lowers_the_budget_and_recovers() -> None:
    scheduler = Scheduler(LIMITS)
    jobs = [job(10, 10) for _ in range(3)]
    for one in jobs:
        scheduler.add(one, 0.0)
    scheduler.decide(0.0)
    assert scheduler.shed() is jobs[2]
    assert scheduler.row_limit == 40
    scheduler.put_back(jobs[2])
    late = job(1, 1, priority=-1)
    scheduler.add(late, AGEING_SECONDS + 1)
    assert scheduler.decide(20.0).joining == ()
    scheduler.finish([jobs[0].number])
    # Its old place in the line is before one that came later.
    assert scheduler.decide(20.0).joining == (jobs[2],)
    for _ in range(RECOVERY_STEPS):
        scheduler.decide(20.0)
    assert scheduler.row_limit > 40
    assert late.number in scheduler.running


def bytecodes(act: Callable[[], object]) -> int:
    """Bytecodes of Python that a call runs, without those of callbacks of the collector."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.disable()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def test_ten_thousand_waiting_requests_cost_a_decision_nothing() -> None:
    costs = {}
    for waiting in (10, 10_000):
        scheduler = Scheduler(Limits(places=16, rows=10**6, prefill_rows=10**6, waiting=20_000))
        for place in range(16 + waiting):
            scheduler.add(job(priority=place * 7919 % 5, deadline=1e6 + place), float(place))
        scheduler.decide(0.0)
        cost = bytecodes(lambda at=scheduler: at.decide(0.0))  # type: ignore[misc]
        oldest = next(iter(scheduler.running))
        scheduler.finish([oldest])
        costs[waiting] = cost, bytecodes(lambda at=scheduler: at.decide(0.0))  # type: ignore[misc]
    idle, refill = costs[10]
    assert min(idle, refill) > 0
    assert costs[10_000] == (idle, refill)


def test_the_deciding_files_import_no_torch() -> None:
    code = (
        "import sys, server.engine.scheduler, server.engine.request, server.engine.engine;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, cancellations, deadlines, endings and lost memory against a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(LIMITS)
        self.now = 0.0
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.given_up: list[Job] = []
        """Running requests that were cancelled since the last decision."""

    @rule(
        prompt=st.integers(1, 60),
        canvas=st.integers(1, 60),
        priority=st.integers(-(2**31), 2**31),
        timeout=st.none() | st.floats(0.5, 20.0),
    )
    def add(self, prompt: int, canvas: int, priority: int, timeout: float | None) -> None:
        deadline = None if timeout is None else self.now + timeout
        one = job(prompt, canvas, priority=priority, deadline=deadline)
        if one.rows > LIMITS.rows:
            with pytest.raises(TooLarge):
                self.scheduler.add(one, self.now)
        else:
            self.scheduler.add(one, self.now)
            self.waiting.append(one)

    @precondition(lambda self: self.waiting or self.running)
    @rule(pick=st.integers(0, 10**6))
    def cancel(self, pick: int) -> None:
        everybody = [*self.waiting, *self.running]
        one = everybody[pick % len(everybody)]
        self.scheduler.cancel(one)
        if one in self.running:
            self.running.remove(one)
            self.given_up.append(one)
        else:
            self.waiting.remove(one)

    @rule(seconds=st.floats(0.0, 5.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def decide(self) -> None:
        decision = self.scheduler.decide(self.now)
        late = [
            one
            for one in (*self.waiting, *self.running)
            if one.deadline is not None and one.deadline <= self.now
        ]
        assert set(decision.expired) == set(late)
        gone = {one.number for one in (*self.given_up, *late) if one not in self.waiting}
        assert decision.leaving == gone
        self.given_up = []
        self.waiting = [one for one in self.waiting if one not in late]
        self.running = [one for one in self.running if one not in late]

        self.waiting.sort(key=lambda one: (one.urgency, one.number))
        count = len(decision.joining)
        assert list(decision.joining) == self.waiting[:count]
        prompts = sum(one.prompt_rows for one in decision.joining)
        assert count <= 1 or prompts <= LIMITS.prefill_rows
        self.running += decision.joining
        del self.waiting[:count]
        if self.waiting:
            first = self.waiting[0]
            rows = sum(one.rows for one in self.running)
            assert (
                len(self.running) == LIMITS.places
                or rows + first.rows > self.scheduler.row_limit
                or (count and prompts + first.prompt_rows > LIMITS.prefill_rows)
            )
            assert self.running

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0, 10**6))
    def end(self, pick: int) -> None:
        one = self.running.pop(pick % len(self.running))
        self.scheduler.finish([one.number])

    @precondition(lambda self: self.running)
    @rule(back=st.booleans())
    def lose_memory(self, back: bool) -> None:
        one = self.scheduler.shed()
        assert one is self.running.pop()
        if back:
            self.scheduler.put_back(one)
            self.waiting.append(one)

    @invariant()
    def nothing_leaks_and_nothing_is_over_budget(self) -> None:
        rows = sum(one.rows for one in self.running)
        assert list(self.scheduler.running.values()) == self.running
        assert self.scheduler.waiting == len(self.waiting)
        assert self.scheduler.used_rows == rows
        assert len(self.running) <= LIMITS.places
        assert rows <= self.scheduler.row_limit or len(self.running) == 1
        assert self.scheduler.row_limit <= LIMITS.rows

    def teardown(self) -> None:
        """Everybody who waits has a turn, and then everything is as at the beginning."""
        for _ in range(2 * (len(self.waiting) + len(self.running)) + 1):
            self.decide()
            for one in list(self.running):
                self.running.remove(one)
                self.scheduler.finish([one.number])
        assert self.waiting == []
        assert self.scheduler.used_rows == 0
        assert self.scheduler.decide(self.now) == Decision(frozenset(), (), ())


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

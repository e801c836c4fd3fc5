"""The loop with a runner that counts: joining, leaving, and everything that goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from engine_fakes import CountingRunner, Inbox, job
from hypothesis import given, settings
from hypothesis import strategies as st

from rediff_model.sampling.outputs import Generation, StepEvent
from server.engine.loop import Loop
from server.engine.request import Failure, OutOfMemory, StepTrace
from server.engine.scheduler import Limits, Scheduler
from server.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from server.engine.request import Event, Job


LIMITS = Limits(places=4, rows=100, prefill_rows=100, waiting=8)


@dataclass(eq=False)
class Bench:
    """A loop around a counting runner."""

    limits: Limits = LIMITS
    runner: CountingRunner = field(default_factory=CountingRunner)
    metrics: Metrics = field(default_factory=Metrics)
    traces: list[StepTrace] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        scheduler = Scheduler(self.limits)
        self.loop = Loop(
            self.runner,
            scheduler,
            self.metrics,
            self.traces.append,
            clock=lambda: self.now,
            probe=lambda: self.runner.warm_up(1),
        )

    def submit(self, **options: Any) -> tuple[Job, Inbox]:
        inbox = Inbox()
        options.setdefault("emit", inbox.events.append)
        one = job(**options)
        self.loop.submit(one)
        return one, inbox

    def run(self) -> None:
        """Step until nothing is left."""
        for _ in range(100):
            if self.loop.idle:
                return
            self.loop.step()
        raise AssertionError("the loop does not end")

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def raising(
    error: BaseException, when: Callable[[Mapping[int, Job]], bool]
) -> Callable[[Mapping[int, Job]], None]:
    def check(jobs: Mapping[int, Job]) -> None:
        if when(jobs):
            raise error

    return check


def test_a_request_joins_at_the_next_step_and_leaves_in_the_step_it_ends() -> None:
    bench = Bench()
    bench.submit(steps=3)
    bench.loop.step()
    bench.submit(steps=1)
    bench.loop.step()
    bench.submit(steps=2)
    bench.run()
    assert bench.runner.steps == [(0,), (0, 1), (0, 2), (2,)]
    assert [trace.running for trace in bench.traces] == bench.runner.steps
    assert [trace.joined for trace in bench.traces] == [(0,), (1,), (2,), ()]


def test_steps_are_told_to_those_who_want_them_and_the_caption_comes_last() -> None:
    bench = Bench()
    _, watching = bench.submit(steps=2, wants_steps=True)
    _, plain = bench.submit(steps=2)
    bench.run()
    assert [type(event) for event in watching.events] == [StepEvent, StepEvent, Generation]
    assert [type(event) for event in plain.events] == [Generation]


def test_cancelled_work_is_gone_by_the_next_step_and_tells_nothing() -> None:
    bench = Bench(Limits(places=2, rows=100, prefill_rows=100, waiting=8))
    jobs = [bench.submit(steps=5) for _ in range(3)]
    bench.loop.step()
    for place in (0, 2):
        bench.loop.cancel(jobs[place][0])
    bench.run()
    assert bench.runner.steps == [(0, 1)] + [(1,)] * 4
    assert [len(inbox.events) for _, inbox in jobs] == [0, 1, 0]
    assert bench.count("rediff_cancellations_total", where="running") == 1
    assert bench.count("rediff_cancellations_total", where="waiting") == 1


def test_who_is_cancelled_before_the_loop_has_seen_it_never_runs() -> None:
    bench = Bench()
    one, _ = bench.submit()
    bench.loop.cancel(one)
    bench.run()
    assert bench.runner.steps == []
    assert bench.count("rediff_cancellations_total", where="waiting") == 1


def test_cancelling_what_has_ended_is_nothing() -> None:
    bench = Bench()
    one, _ = bench.submit()
    bench.run()
    bench.loop.cancel(one)
    bench.run()
    assert bench.count("rediff_cancellations_total", where="running") == 0
    assert bench.count("rediff_cancellations_total", where="waiting") == 0


def test_deadlines_are_told() -> None:
    bench = Bench(Limits(places=1, rows=100, prefill_rows=100, waiting=8))
    _, running = bench.submit(steps=5, deadline=1.0)
    _, waiting = bench.submit(deadline=1.0)
    _, other = bench.submit(deadline=9.0)
    bench.loop.step()
    bench.now = 1.0
    bench.run()
    assert [running.last, waiting.last] == [Failure("deadline")] * 2
    assert isinstance(other.last, Generation)
    assert bench.runner.steps == [(0,), (2,)]


def test_a_request_that_cannot_be_started_fails_alone() -> None:
    bench = Bench()
    bench.runner.before_join = raising(ValueError("bad"), lambda jobs: 1 in jobs)
    told = [bench.submit()[1] for _ in range(3)]
    bench.run()
    assert [inbox.last for inbox in told][1] == Failure("request")
    assert [type(inbox.last) for inbox in (told[0], told[2])] == [Generation] * 2
    assert bench.runner.steps == [(0, 2)]


def test_a_step_that_raises_fails_its_batch_and_the_next_step_runs() -> None:
    bench = Bench()
    bench.runner.before_step = raising(RuntimeError("boom"), lambda jobs: 1 in jobs)
    told = [bench.submit()[1] for _ in range(2)]
    bench.loop.step()
    assert [inbox.last for inbox in told] == [Failure("step")] * 2
    _, later = bench.submit()
    bench.run()
    assert isinstance(later.last, Generation)
    # What the failed step left behind is not trusted.
    assert len(bench.runner.opened) == 2
    assert bench.count("rediff_errors_total", kind="step") == 2


def always_raises(*_: object) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_model_that_runs_by_itself_goes_on_however_often_steps_fail() -> None:
    bench = Bench()
    bench.runner.before_step = always_raises
    for _ in range(7):
        _, inbox = bench.submit()
        bench.loop.step()
        assert inbox.events == [Failure("step")]
    assert bench.runner.warmed == [1, 1]
    bench.runner.before_step = lambda jobs: None
    _, inbox = bench.submit()
    bench.run()
    assert isinstance(inbox.last, Generation)


def test_a_device_that_is_broken_for_good_ends_the_loop_when_everybody_is_told() -> None:
    bench = Bench()
    bench.runner.before_step = bench.runner.before_warm_up = always_raises
    inboxes = []
    for _ in range(2):
        inboxes.append(bench.submit()[1])
        bench.loop.step()
    inboxes.append(bench.submit()[1])
    with pytest.raises(RuntimeError, match="illegal memory"):
        bench.loop.step()
    assert [inbox.events for inbox in inboxes] == [[Failure("step")]] * 3


def test_those_in_a_failed_batch_are_told_also_if_no_other_can_be_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.runner.before_step = always_raises
    monkeypatch.setattr(bench.runner, "open", always_raises)
    _, inbox = bench.submit()
    with pytest.raises(RuntimeError, match="illegal memory"):
        bench.loop.step()
    assert inbox.events == [Failure("step")]


@pytest.mark.parametrize("error", [RuntimeError("boom"), OutOfMemory()])
def test_a_request_that_cannot_leave_fails_its_batch_and_those_who_join_go_on(
    error: Exception,
) -> None:
    bench = Bench()
    bench.runner.before_drop = raising(error, lambda jobs: 0 in jobs)
    (first, gone), (_, beside) = bench.submit(steps=4), bench.submit(steps=4)
    bench.loop.step()
    bench.loop.cancel(first)
    _, later = bench.submit(steps=2)
    bench.run()
    assert gone.events == []
    assert beside.events == [Failure("step")]
    assert isinstance(later.last, Generation)
    assert len(bench.runner.opened) == 2
    assert bench.count("rediff_rows_running") == 0


def test_a_broken_request_that_cannot_leave_takes_no_caption_from_others() -> None:
    bench = Bench()
    bench.runner.broken = {1}
    bench.runner.before_drop = raising(RuntimeError("boom"), lambda jobs: 1 in jobs)
    told = [bench.submit(steps=steps)[1] for steps in (1, 3, 3)]
    bench.run()
    assert isinstance(told[0].last, Generation)
    assert told[1].events == [Failure("numbers")]
    assert told[2].events == [Failure("step")]


def test_a_caller_that_cannot_be_told_hurts_nobody_else() -> None:
    bench = Bench()

    def refuse(event: Event) -> None:
        raise RuntimeError("no")

    bench.submit(steps=2, wants_steps=True, emit=refuse)
    _, other = bench.submit(steps=2)
    bench.run()
    assert isinstance(other.last, Generation)
    assert bench.runner.steps == [(0, 1), (1,)]


def test_numbers_that_are_not_finite_fail_the_request_alone() -> None:
    bench = Bench()
    bench.runner.broken = {1}
    told = [bench.submit(steps=2, wants_steps=True)[1] for _ in range(3)]
    bench.run()
    assert told[1].events == [Failure("numbers")]
    assert [type(inbox.last) for inbox in (told[0], told[2])] == [Generation] * 2
    assert bench.runner.steps == [(0, 1, 2), (0, 2)]


@pytest.mark.parametrize("where", ["before_join", "before_step"])
def test_out_of_memory_sheds_the_newest_which_comes_back(where: str) -> None:
    bench = Bench(now=1.0)
    setattr(bench.runner, where, raising(OutOfMemory(), lambda jobs: len(jobs) > 2))
    if where == "before_join":
        told = [bench.submit(steps=2)[1] for _ in range(4)]
        bench.run()
    else:
        told = [bench.submit(steps=2)[1] for _ in range(2)]
        bench.loop.step()
        told += [bench.submit(steps=2)[1] for _ in range(2)]
        bench.run()
    assert [type(inbox.last) for inbox in told] == [Generation] * 4
    assert all(len(step) <= 2 for step in bench.runner.steps)
    assert bench.runner.steps[-1] == (2, 3)
    assert bench.count("rediff_row_budget") == 24
    assert bench.count("rediff_requests_shed_total") == 2
    assert bench.count("rediff_request_queue_time_seconds_count") == 4


def test_memory_that_runs_out_while_a_bad_request_is_looked_for_loses_nobody() -> None:
    bench = Bench()
    calls = 0

    def join(jobs: Mapping[int, Job]) -> None:
        nonlocal calls
        calls += 1
        if 1 in jobs:
            raise ValueError("bad")
        if calls == 2:
            raise OutOfMemory

    bench.runner.before_join = join
    told = [bench.submit()[1] for _ in range(3)]
    bench.run()
    assert [type(inbox.last) for inbox in told] == [Generation, Failure, Generation]
    assert bench.runner.joined == [(0,), (2,)]
    assert bench.count("rediff_rows_running") == 0


def test_a_stream_that_has_begun_is_not_begun_again() -> None:
    bench = Bench()
    _, older = bench.submit(steps=3)
    bench.loop.step()
    _, stream = bench.submit(steps=3, wants_steps=True)
    bench.loop.step()
    bench.runner.before_step = raising(OutOfMemory(), lambda jobs: len(jobs) > 1)
    bench.run()
    assert [type(event) for event in stream.events] == [StepEvent, Failure]
    assert stream.last == Failure("memory")
    assert isinstance(older.last, Generation)


@pytest.mark.parametrize("where", ["before_join", "before_step"])
def test_a_request_too_large_for_an_empty_device_fails_and_the_next_runs(where: str) -> None:
    bench = Bench()
    setattr(bench.runner, where, raising(OutOfMemory(), lambda jobs: 0 in jobs))
    _, large = bench.submit()
    bench.loop.step()
    _, small = bench.submit()
    bench.run()
    assert large.events == [Failure("memory")]
    assert isinstance(small.last, Generation)
    assert bench.count("rediff_row_budget") == 100


def test_what_can_never_run_and_what_is_too_much_is_refused() -> None:
    bench = Bench(Limits(places=1, rows=20, prefill_rows=100, waiting=1))
    _, large = bench.submit(prompt_rows=20)
    told = [bench.submit()[1] for _ in range(2)]
    bench.loop.step()
    assert large.last == Failure(
        "too_large", "the request takes 28 rows of prompt and canvas, the limit is 20"
    )
    assert told[1].last == Failure("queue", "1 requests are waiting")


def test_at_the_end_everybody_is_told() -> None:
    bench = Bench(Limits(places=1, rows=100, prefill_rows=100, waiting=8))
    told = [bench.submit(steps=9)[1] for _ in range(2)]
    bench.loop.step()
    told.append(bench.submit()[1])
    bench.loop.fail_all()
    assert [inbox.last for inbox in told] == [Failure("engine")] * 3


def test_times_and_counts_are_observed() -> None:
    bench = Bench()
    one, _ = bench.submit(steps=2)
    one.arrived_at = -1.0
    bench.now = 2.0
    bench.run()
    assert bench.count("rediff_request_queue_time_seconds_sum") == 2.0
    assert bench.count("rediff_time_to_first_step_seconds_sum") == 3.0
    assert bench.count("rediff_canvas_positions_computed_total") == 16
    assert bench.count("rediff_batch_occupancy_sum") == 2
    assert bench.count("rediff_rows_running") == 0


FAULTS = st.lists(st.sampled_from([None, None, None, OutOfMemory(), RuntimeError("boom")]))


@given(
    faults=FAULTS,
    requests=st.lists(
        st.tuples(
            st.integers(0, 6),
            st.integers(1, 4),
            st.none() | st.integers(0, 5),
            st.booleans(),
            st.none() | st.floats(0.5, 9.0),
        ),
        max_size=12,
    ),
)
@settings(deadline=None)
def test_whatever_fails_everybody_gets_one_end_and_nothing_leaks(
    faults: list[Exception | None],
    requests: list[tuple[int, int, int | None, bool, float | None]],
) -> None:
    """Requests as (arrival, steps, steps until they leave, streams, deadline)."""
    bench = Bench(Limits(places=3, rows=40, prefill_rows=8, waiting=20))

    left = list(faults)

    def fault(jobs: Mapping[int, Job]) -> None:
        error = left.pop() if left else None
        if error is not None:
            raise error

    bench.runner.before_join = bench.runner.before_step = bench.runner.before_drop = fault
    jobs: list[tuple[Job, Inbox]] = []
    for step in range(150):
        bench.now = float(step)
        for arrival, steps, _, streams, deadline in requests:
            if arrival == step:
                at = None if deadline is None else step + deadline
                jobs.append(bench.submit(steps=steps, wants_steps=streams, deadline=at))
        for (one, inbox), (arrival, _, stay, _, _) in zip(
            jobs, sorted(requests, key=lambda r: r[0]), strict=False
        ):
            if stay is not None and arrival + stay == step and not inbox.events:
                bench.loop.cancel(one)
        bench.loop.step()
        assert bench.runner.opened[-1].jobs.keys() == bench.loop._scheduler.running.keys()
    assert bench.loop.idle
    assert bench.count("rediff_rows_running") == 0
    for one, inbox in jobs:
        ends = [event for event in inbox.events if not isinstance(event, StepEvent)]
        assert len(ends) == (0 if one.cancelled else 1)
        assert inbox.events[-1:] == ends or one.cancelled

"""The engine's thread: start, refusal to start, death and end; and no growth over many requests."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from engine_fakes import INFO, CountingRunner, Inbox, job

from rediff_model.sampling.outputs import Generation
from server.engine.config import EngineConfig
from server.engine.engine import Engine, limits_of
from server.engine.request import Failure
from server.engine.row_budget import NoRoom
from server.engine.scheduler import Limits
from server.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.engine.engine import State
    from server.engine.request import Event

CONFIG = EngineConfig("none", max_batch=8, max_queue=100)


class Told:
    """Waits for the ends of jobs."""

    def __init__(self) -> None:
        self.ends: list[Event] = []
        self._more = threading.Condition()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Generation | Failure):
            with self._more:
                self.ends.append(event)
                self._more.notify()

    def wait(self, count: int) -> list[Event]:
        with self._more:
            assert self._more.wait_for(lambda: len(self.ends) >= count, timeout=20)
        return self.ends


@contextmanager
def started(runner: CountingRunner, config: EngineConfig = CONFIG) -> Iterator[Engine]:
    settled = threading.Event()

    def on_state(state: State) -> None:
        settled.set()

    engine = Engine(lambda: runner, config, Metrics(), on_state)
    engine.start()
    assert settled.wait(10)
    try:
        yield engine
    finally:
        engine.close()


def up(engine: Engine) -> float | None:
    return engine._metrics.registry.get_sample_value("rediff_engine_up")


def test_jobs_run_and_the_thread_ends() -> None:
    told = Told()
    with started(CountingRunner()) as engine:
        assert up(engine) == 1
        for _ in range(20):
            engine.submit(job(emit=told, steps=3))
        assert all(isinstance(end, Generation) for end in told.wait(20))
    assert engine.state == "closed"
    assert up(engine) == 0
    late = Inbox()
    engine.submit(job(emit=late.events.append))
    assert late.events == [Failure("engine")]


def test_a_thread_that_dies_answers_everybody_and_says_so() -> None:
    runner, told = CountingRunner(), Told()
    go = threading.Event()

    def die(jobs: object) -> None:
        assert go.wait(10)
        raise SystemExit

    runner.before_step = die
    with started(runner) as engine:
        for _ in range(20):
            engine.submit(job(emit=told))
        go.set()
        assert told.wait(20) == [Failure("engine")] * 20
        engine.submit(job(emit=told))
        assert told.wait(21)[-1] == Failure("engine")
        engine._thread.join(10)
        assert (engine.state, up(engine)) == ("failed", 0)
        assert isinstance(engine.error, SystemExit)


def test_closing_answers_those_who_are_left() -> None:
    runner, told = CountingRunner(), Told()
    with started(runner) as engine:
        for _ in range(20):
            engine.submit(job(emit=told, steps=8))
    assert len(told.ends) == 20


def test_a_cancelled_job_tells_nothing() -> None:
    runner, told, inbox = CountingRunner(), Told(), Inbox()
    go = threading.Event()

    def hold(jobs: object) -> None:
        assert go.wait(10)

    runner.before_step = hold
    with started(runner, replace(CONFIG, max_batch=1)) as engine:
        engine.submit(job(emit=told))
        leaver = job(emit=inbox.events.append)
        engine.submit(leaver)
        engine.cancel(leaver)
        go.set()
        engine.submit(job(emit=told))
        told.wait(2)
        assert inbox.events == []
        assert leaver.cancelled


def test_a_start_that_cannot_hold_one_request_refuses() -> None:
    runner = CountingRunner()
    runner.info = replace(INFO, row_bytes=1000, request_rows=300, free_bytes=200_000)
    with started(runner) as engine:
        assert engine.state == "failed"
        assert isinstance(engine.error, NoRoom)
        assert "300 rows" in str(engine.error)
        assert "0.10 MB too little" in str(engine.error)
        assert engine.runner is None


def test_warming_up_keeps_to_the_rows_that_may_run() -> None:
    runner = CountingRunner()
    runner.info = replace(INFO, request_rows=12)
    with started(runner, replace(CONFIG, max_rows=40)):
        assert runner.warmed == [3]


def test_limits_come_from_configuration_and_memory() -> None:
    info = replace(INFO, row_bytes=10, request_rows=30, free_bytes=1000)
    assert limits_of(CONFIG, info) == Limits(8, 100, 1024, 108)
    assert limits_of(replace(CONFIG, max_rows=50), info).rows == 50
    assert limits_of(replace(CONFIG, max_rows=50), replace(info, free_bytes=None)).rows == 50
    assert limits_of(CONFIG, replace(info, free_bytes=None)).rows > 10**6
    with pytest.raises(NoRoom, match="max_rows 20"):
        limits_of(replace(CONFIG, max_rows=20), info)


def test_nothing_grows_over_five_thousand_requests() -> None:
    told = Told()

    def run(engine: Engine, count: int) -> None:
        """Requests in turns; every fifth is cancelled, every seventh has a deadline."""
        for first in range(0, count, 100):
            told.ends.clear()
            wanted = 0
            for number in range(first, first + 100):
                deadline = 1e12 if number % 7 == 0 else None
                one = job(emit=told, steps=1 + number % 3, deadline=deadline)
                engine.submit(one)
                if number % 5 == 0:
                    engine.cancel(one)
                else:
                    wanted += 1
            told.wait(wanted)
        told.ends.clear()

    def measure() -> tuple[int, int]:
        runner.steps.clear()
        runner.joined.clear()
        gc.collect()
        return len(gc.get_objects()), tracemalloc.get_traced_memory()[0]

    runner = CountingRunner()
    with started(runner) as engine:
        run(engine, 500)
        tracemalloc.start()
        try:
            run(engine, 500)
            objects, used = measure()
            run(engine, 5000)
            more_objects, more_used = measure()
        finally:
            tracemalloc.stop()
    assert more_objects - objects < 200
    assert more_used - used < 50_000

"""The engine: one thread that takes waiting jobs, runs them as a batch and emits events."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING, Literal

from rediff_model.generation import Generation
from server.engine.request import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from server.engine.request import Batch, Job, Runner
    from server.metrics import Metrics

State = Literal["loading", "ready", "failed", "closed"]

logger = logging.getLogger(__name__)


class Engine:
    """Owns the model and the thread it runs in.

    Jobs wait in order of priority, then of arrival; a batch takes up to `max_batch` of them and
    runs to its end before the next is formed. A job whose `cancelled` is set is dropped unseen
    while it waits, and by the next step while it runs.
    """

    def __init__(
        self,
        load: Callable[[], Runner],
        max_batch: int,
        metrics: Metrics,
        on_state: Callable[[State], None] = lambda state: None,
    ) -> None:
        """`load` runs in the engine's thread; `on_state` is called there at every change."""
        self._load = load
        self._max_batch = max_batch
        self._metrics = metrics
        self._on_state = on_state
        self._wake = threading.Condition()
        self._heap: list[tuple[int, int, Job]] = []
        self._order = itertools.count()
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self.state: State = "loading"
        self.runner: Runner | None = None
        """None until it is warm."""
        self.error: BaseException | None = None
        """Why loading failed, or what the thread died of."""
        self.running = 0
        """Jobs in the current batch."""
        self.batch_seconds = 0.0
        """Moving average of how long a batch takes."""

    @property
    def queued(self) -> int:
        """Jobs that wait for a batch."""
        with self._wake:
            return sum(not job.cancelled for _, _, job in self._heap)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; its events follow in the engine's thread."""
        job.submitted_at = time.monotonic()
        with self._wake:
            if self.state == "ready":
                heapq.heappush(self._heap, (job.priority, next(self._order), job))
                self._wake.notify()
                return
        job.emit(Failure("engine"))

    def close(self, timeout: float = 10.0) -> bool:
        """Fail what is left, stop the thread and wait for it; false if it did not stop in time."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            runner = self._load()
            runner.warm_up(self._max_batch)
            self.runner = runner
        except Exception as error:
            # Whoever started the engine tells it in a line of their own.
            logger.debug("the model cannot be loaded", exc_info=True)
            self.error = error
            self._become("failed")
            return
        self._become("ready")
        taken: list[Job] = []
        try:
            while taken := self._next_jobs():
                self._run(runner, taken)
            self._become("closed")
        # The thread's last line of defence: whatever ends it must be seen from outside.
        except BaseException as error:
            logger.exception("the engine thread ended")
            self.error = error
            self._become("failed")
        finally:
            with self._wake:
                left = [job for _, _, job in self._heap]
                self._heap.clear()
            self._fail([*taken, *left], "engine")

    def _become(self, state: State) -> None:
        with self._wake:
            self.state = state
        self._metrics.engine_up.set(state == "ready")
        self._on_state(state)

    def _next_jobs(self) -> list[Job]:
        """Wait for work and take up to a batch of it; empty when the engine closes."""
        with self._wake:
            while not self._closing:
                jobs: list[Job] = []
                while self._heap and len(jobs) < self._max_batch:
                    job = heapq.heappop(self._heap)[2]
                    if not job.cancelled:
                        jobs.append(job)
                if jobs:
                    return jobs
                self._wake.wait()
            return []

    def _run(self, runner: Runner, jobs: list[Job]) -> None:
        """Run one batch to its end. Whatever it raises fails these jobs and no others."""
        began = time.monotonic()
        for job in jobs:
            job.started_at = began
            self._metrics.queue_time.observe(began - job.submitted_at)
        try:
            batch = runner.start(jobs)
        except Exception:
            if len(jobs) > 1:
                # One of them cannot be started: alone, each fails or runs by itself.
                for job in jobs:
                    self._run(runner, [job])
                return
            logger.exception("a request could not be started")
            self._fail(jobs, "request")
            return
        live = dict(enumerate(jobs))
        try:
            self._steps(batch, live)
        except Exception:
            logger.exception("a step of %d requests failed", len(live))
            self._fail(live.values(), "step")
        finally:
            self.running = 0
        self.batch_seconds += 0.2 * (time.monotonic() - began - self.batch_seconds)

    def _steps(self, batch: Batch, live: dict[int, Job]) -> None:
        """Step until every job is done or cancelled; `live` keeps those that are left."""
        while True:
            gone = {index for index, job in live.items() if job.cancelled}
            if gone:
                batch.drop(gone)
            for index in gone:
                del live[index]
            if self._closing:
                self._fail(live.values(), "engine")
                return
            if not live:
                return
            self.running = len(live)
            self._metrics.batch_size.observe(len(live))
            with self._metrics.step_time.time():
                events = batch.step()
            for index, event in events:
                live[index].emit(event)
                if isinstance(event, Generation):
                    del live[index]

    def _fail(self, jobs: Iterable[Job], kind: Literal["request", "step", "engine"]) -> None:
        for job in jobs:
            if not job.cancelled:
                self._metrics.errors.labels(kind=kind).inc()
                job.emit(Failure(kind))

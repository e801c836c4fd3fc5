"""The engine: the thread that owns the model, from loading it to its end."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Literal

from server.engine.loop import Loop
from server.engine.request import Failure
from server.engine.row_budget import check_rows, rows_in
from server.engine.scheduler import Limits, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.engine.config import EngineConfig
    from server.engine.request import Job, ModelInfo, Runner, StepTrace
    from server.metrics import Metrics

UNBOUNDED = 2**31
"""Rows when neither the configuration nor the memory says a number."""

State = Literal["loading", "ready", "failed", "closed"]

logger = logging.getLogger(__name__)


class Engine:
    """A model and the thread that it runs in.

    Jobs wait in the scheduler's line. At every step those who fit join whatever is running, and
    those who are done leave it. A cancelled job is gone by the next step.
    """

    def __init__(
        self,
        load: Callable[[], Runner],
        config: EngineConfig,
        metrics: Metrics,
        on_state: Callable[[State], None] = lambda state: None,
        on_step: Callable[[StepTrace], None] | None = None,
    ) -> None:
        """`load` runs in the engine's thread; `on_state` and `on_step` are called there."""
        self._load = load
        self._config = config
        self._metrics = metrics
        self._on_state = on_state
        self._on_step = on_step
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._loop: Loop | None = None
        self.state: State = "loading"
        self.runner: Runner | None = None
        """None until it is warm."""
        self.error: BaseException | None = None
        """Why loading failed, or what the thread died of."""

    @property
    def queued(self) -> int:
        """Jobs that wait to join."""
        return 0 if self._loop is None else self._loop.waiting

    @property
    def running(self) -> int:
        """Jobs in the batch."""
        return 0 if self._loop is None else self._loop.running

    @property
    def request_seconds(self) -> float:
        """Moving average of the time from a job's first step to its caption."""
        return 0.0 if self._loop is None else self._loop.request_seconds

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; its events follow in the engine's thread."""
        with self._wake:
            if self.state == "ready" and self._loop is not None:
                self._loop.submit(job)
                self._wake.notify()
                return
        job.emit(Failure("engine"))

    def cancel(self, job: Job) -> None:
        """Give up a job: it emits nothing more and is gone by the next step."""
        with self._wake:
            if self._loop is not None:
                self._loop.cancel(job)
                self._wake.notify()

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
            limits = limits_of(self._config, runner.info)
            usual_rows = max(1, runner.info.request_rows)
            runner.warm_up(min(self._config.max_batch, max(1, limits.rows // usual_rows)))
            loop = Loop(
                runner,
                Scheduler(limits),
                self._metrics,
                self._on_step,
                probe=lambda: runner.warm_up(1),
            )
            self.runner, self._loop = runner, loop
        except Exception as error:
            # Whoever started the engine tells it in a line of their own.
            logger.debug("the model cannot be loaded", exc_info=True)
            self.error = error
            self._become("failed")
            return
        self._become("ready")
        end: State = "closed"
        try:
            while self._has_work(loop):
                loop.step()
        # The thread's last line of defence: whatever ends it must be seen from outside.
        except BaseException as error:
            logger.exception("the engine thread ended")
            self.error = error
            end = "failed"
        self._become(end, loop.fail_all)

    def _has_work(self, loop: Loop) -> bool:
        """Wait until there is something to do; false when the engine closes."""
        with self._wake:
            self._wake.wait_for(lambda: self._closing or not loop.idle)
            return not self._closing

    def _become(self, state: State, before_told: Callable[[], None] = lambda: None) -> None:
        """Change the state, which `submit` sees at once; then tell it."""
        with self._wake:
            self.state = state
        self._metrics.engine_up.set(state == "ready")
        try:
            before_told()
        finally:
            self._on_state(state)


def limits_of(config: EngineConfig, info: ModelInfo) -> Limits:
    """What may run at once, from the configuration and the memory that the model has left.

    Raises:
        NoRoom: not even a request of the usual size fits.
    """
    rows = config.max_rows
    if info.free_bytes is not None:
        fitting = rows_in(info.free_bytes, info.row_bytes, info.request_rows)
        rows = fitting if rows is None else min(rows, fitting)
    if rows is None:
        rows = UNBOUNDED
    check_rows(rows, info.request_rows)
    return Limits(
        places=config.max_batch,
        rows=rows,
        prefill_rows=config.max_prefill_rows,
        waiting=config.max_batch + config.max_queue,
    )

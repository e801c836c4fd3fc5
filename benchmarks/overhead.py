"""Time that the engine spends beside computing, and what queues and long prompts add to a step.

Steps are compared by the processor time of their thread, so that other work does not matter; run
with one thread of torch.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING, Any, Self
from unittest.mock import patch

import torch

from rediff_model.sampling import sampler
from rediff_model.sampling.params import SamplerSettings
from server.engine.config import EngineConfig
from server.engine.loop import Loop
from server.engine.model_runner import SamplerRunner
from server.engine.request import Job, Prepared
from server.engine.scheduler import Limits, Scheduler
from server.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from rediff_model.model import Captioner
    from server.engine.request import StepTrace

STEPS = 24
"""Steps of each side that are compared; fewer than a caption takes."""


class SamplerClock:
    """While entered, adds up the seconds inside the sampler."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        for name in ("join", "step"):
            self._stack.enter_context(patch.object(sampler, name, self._timed(name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _timed(self, name: str) -> Callable[..., Any]:
        function = getattr(sampler, name)

        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def queued_slowdown(
    captioner: Captioner, prompts: Sequence[Tensor], settings: SamplerSettings, queued: int
) -> float:
    """Part of a step by which `queued` waiting requests lengthen it.

    Two engines of sixteen running requests step in turn, one of them with the queue. What is
    compared is their time outside the batch, whose own time has nothing to do with the queue.
    """
    config = EngineConfig("embedded")
    runner = SamplerRunner(captioner, config)
    sides: list[tuple[Loop, list[StepTrace]]] = []
    for waiting in (0, queued):
        traces: list[StepTrace] = []
        limits = Limits(config.max_batch, 2**30, 2**30, config.max_batch + waiting)
        loop = Loop(runner, Scheduler(limits), Metrics(), traces.append, time.thread_time)
        for number in range(config.max_batch + waiting):
            rows_PD = prompts[number % len(prompts)]
            prompt = Prepared(rows_PD, 0, len(rows_PD))
            loop.submit(Job(prompt, settings, lambda event: None, deadline=1e12))
        sides.append((loop, traces))
    for _ in range(STEPS):
        for loop, _ in sides:
            loop.step()
    # The first step takes the arrivals in.
    idle, busy = (
        median(trace.seconds - trace.computing for trace in traces[1:]) for _, traces in sides
    )
    return (busy - idle) / median(trace.seconds for trace in sides[0][1][1:])


def longest_step(captioner: Captioner, prefill_rows: int) -> float:
    """The longest step in which long prompts join running canvases, in ordinary steps.

    Eight canvases run; then eight prompts of 512 rows arrive at once.
    """
    traces: list[StepTrace] = []
    runner = SamplerRunner(captioner, EngineConfig("embedded"))
    scheduler = Scheduler(Limits(16, 2**30, prefill_rows, 99))
    loop = Loop(runner, scheduler, Metrics(), traces.append, time.thread_time)
    size = captioner.config.language.hidden_size
    settings = SamplerSettings(canvas_length=128, tokens_per_step=2, stop=())
    for rows in (64, 512):
        rows_PD = torch.randn(rows, size, generator=torch.Generator().manual_seed(rows))
        for _ in range(8):
            loop.submit(Job(Prepared(rows_PD, 0, rows), settings, lambda event: None))
        for _ in range(12):
            loop.step()
    ordinary = median(trace.seconds for trace in traces[1:12])
    return max(trace.seconds for trace in traces[12:]) / ordinary

"""Batches of the sampler over many requests: memory, and when prompts are computed again."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tiny_engine import PROMPTS, BareRunner, model_of, prompt_of

from rediff_model.sampling.params import SamplerSettings
from server.engine.loop import Loop
from server.engine.request import Job, Prepared
from server.engine.scheduler import Limits, Scheduler
from server.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rediff_model.config import PrefixAttention
    from server.engine.request import Event


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def job(place: int, settings: SamplerSettings, emit: Callable[[Event], None]) -> Job:
    rows_PD = prompt_of(place)
    return Job(Prepared(rows_PD, 0, len(rows_PD)), settings, emit)


@pytest.mark.parametrize(
    ("attention", "interval", "due"),
    [
        ("full", 1, {0: [2, 3, 4, 5, 6], 1: [3, 4, 5, 6]}),
        ("full", 2, {0: [3, 5], 1: [4, 6]}),
        ("full", None, {0: [], 1: []}),
        ("prefix", 1, {0: [], 1: []}),
    ],
)
def test_prompts_that_are_computed_again_are_told(
    attention: PrefixAttention, interval: int | None, due: dict[int, list[int]]
) -> None:
    batch = BareRunner(model_of(attention), interval).open()
    settings = SamplerSettings(canvas_length=12, tokens_per_step=1, stop=())
    refreshed: dict[int, list[int]] = {0: [], 1: []}
    for step in range(1, 7):
        if step < 3:
            batch.join({step - 1: job(step, settings, lambda event: None)})
        for number in batch.step().refreshed:
            refreshed[number].append(step)
    assert refreshed == due


def resident_bytes() -> int:
    """Anonymous memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(
        1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")
    )


def test_memory_does_not_grow_over_five_thousand_requests() -> None:
    """Of all shapes, so that buffers and buckets come and go."""
    limits = Limits(places=64, rows=2**20, prefill_rows=2**20, waiting=2**20)
    loop = Loop(BareRunner(model_of("prefix")), Scheduler(limits), Metrics())

    def run(count: int) -> tuple[int, int]:
        for number in range(count):
            chosen = SamplerSettings(canvas_length=2 + number % 5, steps=1)
            loop.submit(job(number % len(PROMPTS), chosen, ends.append))
        while not loop.idle:
            loop.step()
        assert len(ends) == count
        ends.clear()
        gc.collect()
        return resident_bytes(), len(gc.get_objects())

    ends: list[Event] = []
    used, objects = run(500)
    more_used, more_objects = run(4500)
    assert more_used - used < 8_000_000
    assert more_objects - objects < 500

"""Captions of the engine equal those of the reference, whatever else is in the batch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
from engine_fakes import Inbox
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_engine import IDS, PROMPTS, BareRunner, model_of, prompt_of

from rediff_model.sampling import reference
from rediff_model.sampling.outputs import Generation, StepEvent
from rediff_model.sampling.params import PRESETS, SamplerSettings
from server.engine.loop import Loop
from server.engine.request import Job, Prepared
from server.engine.scheduler import Limits, Scheduler
from server.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rediff_model.config import PrefixAttention

SETTINGS = (
    SamplerSettings(canvas_length=12),
    SamplerSettings(canvas_length=12, tokens_per_step=1, refine_fraction=0.5),
    SamplerSettings(canvas_length=16, block_length=4, refine=False),
    SamplerSettings(canvas_length=8, tokens_per_step=2, temperature=0.7, seed=5),
    SamplerSettings(canvas_length=8, cfg_scale=0.5, remasking="random", seed=11),
    SamplerSettings(canvas_length=6, draft=(1, 2, 3, 26)),
    SamplerSettings(canvas_length=4, draft=(4, 5, 6, 7), refine=False),
    SamplerSettings(canvas_length=20, tokens_per_step=5, suffix=(8, 9), stop=()),
    SamplerSettings(canvas_length=16, reveal_threshold=0.04, edit_threshold=0.04),
    SamplerSettings(canvas_length=8, extra_refine_steps=4),
    replace(PRESETS["adaptive"], canvas_length=16),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def expected(attention: PrefixAttention, prompt: int, chosen: int) -> Generation:
    return reference.generate(model_of(attention), prompt_of(prompt), SETTINGS[chosen], IDS)


class Visit:
    """A request of a schedule, and what it was told."""

    def __init__(
        self, arrival: int, prompt: int, chosen: int, stay: int | None, priority: int
    ) -> None:
        self.arrival, self.prompt, self.chosen = arrival, prompt, chosen
        self.leaves = None if stay is None else arrival + stay
        """The step before which it is cancelled."""
        self.inbox = Inbox()
        rows_PD = prompt_of(prompt)
        self.job = Job(
            Prepared(rows_PD, 0, len(rows_PD)),
            SETTINGS[chosen],
            self.inbox.events.append,
            wants_steps=chosen % 2 == 0,
            priority=priority,
        )


VISITS = st.lists(
    st.builds(
        Visit,
        st.integers(0, 12),
        st.integers(0, len(PROMPTS) - 1),
        st.integers(0, len(SETTINGS) - 1),
        st.none() | st.none() | st.integers(0, 6),
        st.sampled_from([0, 0, -3, 2]),
    ),
    min_size=1,
    max_size=9,
)


@pytest.mark.parametrize("attention", ["prefix", "full"])
@given(visits=VISITS, threads=st.integers(1, 2))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
def test_captions_equal_the_reference_whatever_arrives_and_leaves(
    attention: PrefixAttention, visits: list[Visit], threads: int
) -> None:
    torch.set_num_threads(threads)
    scheduler = Scheduler(Limits(places=4, rows=90, prefill_rows=20, waiting=99))
    loop = Loop(BareRunner(model_of(attention)), scheduler, Metrics())
    step = 0
    while not loop.idle or any(visit.arrival >= step for visit in visits):
        for visit in visits:
            if visit.arrival == step:
                loop.submit(visit.job)
            if visit.leaves == step:
                loop.cancel(visit.job)
        loop.step()
        step += 1
        assert step < 400
    for visit in visits:
        told = visit.inbox.events
        assert all(isinstance(event, StepEvent) for event in told[:-1])
        if not visit.job.cancelled:
            caption = told[-1]
            wanted = expected(attention, visit.prompt, visit.chosen)
            assert isinstance(caption, Generation)
            assert (caption.canvas, caption.steps) == (wanted.canvas, wanted.steps)
            assert caption.revision_counts == wanted.revision_counts
            assert caption.confidences == pytest.approx(wanted.confidences, abs=1e-9)

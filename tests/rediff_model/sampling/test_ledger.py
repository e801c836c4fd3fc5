"""What the host keeps of canvases: revisions, flips, steps, and the surest canvas of a cycle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sampler_case import IDS, assert_equal, model_of, prompt_of

from rediff_model.sampling import reference, sampler
from rediff_model.sampling.ledger import Ledger, Report
from rediff_model.sampling.params import SamplerSettings

if TYPE_CHECKING:
    from rediff_model.sampling.outputs import Generation

MASK, STOP = 9, 8
A, B, C = [1, 2, STOP], [3, 2, STOP], [4, STOP, 0]


def captioned(
    first: list[int], steps: list[tuple[list[int], list[float]]], **changes: Any
) -> Generation:
    """The caption of one canvas that takes these values with these confidences."""
    settings = SamplerSettings(canvas_length=3, **changes)
    stop = [first.index(STOP) if STOP in first else 3]
    ledger = Ledger.open(MASK, np.array([first]), np.array(stop))
    for number, (ids, sure) in enumerate(steps, start=1):
        report = Report(
            ids_BC=np.array([ids]),
            confidence_BC=np.array([sure]),
            stop_B=np.array([ids.index(STOP)]),
            sight_B=np.array([3]),
            forwards_B=np.array([number]),
            done_B=np.array([number == len(steps)]),
            broken_B=np.array([False]),
            top_ids_BCK=np.zeros((1, 3, 0), dtype=np.int64),
            top_chance_BCK=np.zeros((1, 3, 0)),
        )
        ledger = ledger.record(report := ledger.ended(report, [settings]))
    return ledger.caption(0, settings, None, int(report.stop_B[0]), len(steps))


def test_a_cycle_ends_on_its_surest_canvas() -> None:
    low, high = [0.5, 0.9, 0.9], [0.8, 0.9, 0.9]
    made = captioned(A, [(B, high), (A, low)])
    assert (made.ids, made.revision_counts, made.flips) == ((3, 2), (1, 0, 0), 0)
    assert (made.step_map, made.confidences) == ((1, 0, 0), (0.8, 0.9, 0.9))
    made = captioned(A, [(B, low), (A, high)])
    assert (made.ids, made.revision_counts, made.flips) == ((1, 2), (2, 0, 0), 1)
    assert made.step_map == (2, 0, 0)


def test_tokens_behind_the_stop_say_nothing_about_a_canvas() -> None:
    made = captioned(A, [(C, [0.6, 0.9, 0.1]), (A, [0.9, 0.9, 0.6])])
    assert (made.ids, made.finish_reason) == ((4,), "stop")


def test_only_a_cycle_of_complete_canvases_is_chosen_from() -> None:
    low, high = [0.5] * 3, [0.9] * 3
    hole = [MASK, 2, STOP]
    assert captioned(hole, [(B, high), (A, low)]).ids == (1, 2)
    assert captioned(C, [(B, high), (A, low)]).ids == (1, 2)
    assert captioned(C, [(B, high), (A, low), (A, low)]).ids == (1, 2)
    assert captioned(A, [(B, high), (A, low)], compat="official").ids == (1, 2)


@pytest.mark.parametrize(("seed", "prompt"), [(1, 5), (2, 2)])
def test_the_last_event_of_a_cycle_shows_the_caption(seed: int, prompt: int) -> None:
    model = model_of("full", seed)
    chosen = SamplerSettings(canvas_length=10, tokens_per_step=5, extra_refine_steps=12)
    canvases: list[tuple[int, ...]] = []
    [made] = sampler.generate(
        model,
        [prompt_of(prompt, 4)],
        [chosen],
        IDS,
        lambda events: canvases.extend(event.canvas for event in events),
    )
    assert canvases[-1] == made.canvas
    assert made.canvas in canvases[:-1]
    assert_equal(made, reference.generate(model, prompt_of(prompt, 4), chosen, IDS))

"""`refine_canvas` in Triton: every field equal to the reference's, step after step."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from math import inf
from typing import Any, TypeVar

import pytest
import torch

from kernels import reference
from kernels.canvas import FIXED, OPENING, Canvas, Plan, Written
from kernels.refine_canvas import refine_canvas

MASK = 9
Slots = TypeVar("Slots", Plan, Canvas)


def draw_plan(rng: random.Random, generator: torch.Generator) -> Plan:
    """Requests of all kinds together."""
    batch = rng.randint(1, 6)
    blocks = [rng.choice([1, 2, 3]) for _ in range(batch)]
    block_lengths = [rng.choice([1, 2, 5]) for _ in range(batch)]
    sequences, longest = rng.choice([1, 2]), rng.choice([1, 2])
    sizes_BQ = torch.randint(0, longest + 1, (batch, sequences), generator=generator)

    def each(*choices: float) -> torch.Tensor:
        return torch.tensor([rng.choice(choices) for _ in range(batch)])

    return Plan(
        mask_id=MASK,
        most_blocks=max(blocks),
        length_B=torch.tensor(blocks) * torch.tensor(block_lengths),
        block_length_B=torch.tensor(block_lengths),
        blocks_B=torch.tensor(blocks),
        steps_B=each(1, 2, 3, 6),
        refine_B=each(True, True, False),
        refine_from_B=each(0, 0, 1, 2),
        refine_fraction_B=each(1.0, 0.5, 0.3).double(),
        least_B=each(0, 0, 1, 2),
        reveal_above_B=each(inf, inf, 2.0, -inf).double(),
        end_above_B=each(inf, inf, 1.0, -inf).double(),
        edit_above_B=each(-inf, -inf, 1.0, 2.0).double(),
        extra_B=each(0, 0, 1, 3),
        shrinks_B=each(True, False),
        official_B=each(True, False, False),
        stops_BQL=torch.randint(6, 9, (batch, sequences, longest), generator=generator),
        stop_lengths_BQ=sizes_BQ,
        stop_span_B=sizes_BQ.amax(dim=1),
    )


def draw_canvas(plan: Plan, rng: random.Random, generator: torch.Generator) -> Canvas:
    """Empty or drafted canvases in their first block, some with columns behind the answer."""
    shape = (len(plan.length_B), int(plan.length_B.max()) + rng.choice([0, 3]))
    ids_BC = torch.full(shape, MASK)
    if rng.random() < 0.6:
        drafted_BC = torch.rand(shape, generator=generator) < rng.choice([0.5, 1.0])
        ids_BC[drafted_BC] = torch.randint(0, 9, shape, generator=generator)[drafted_BC]
    found_B = reference.first_stop(plan, ids_BC).amin(dim=1)
    stop_B = torch.where(plan.official_B, plan.length_B, found_B)
    rule_BC = None
    if rng.random() < 0.5:
        rule_BC = torch.randint(0, OPENING + 1, shape, generator=generator)
    canvas = Canvas.blank(ids_BC, stop_B, plan.length_B, rule_BC)
    return reference.enter_block(plan, canvas, ~canvas.done_B)


def on(device: str, slots: Slots) -> Slots:
    """The slots on a device."""
    values = {field.name: getattr(slots, field.name) for field in fields(slots)}
    moved: dict[str, Any] = {
        n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in values.items()
    }
    return type(slots)(**moved)


def assert_same(got: Canvas | Written, want: Canvas | Written) -> None:
    for field in fields(want):
        got_X, want_X = getattr(got, field.name), getattr(want, field.name)
        assert got_X.dtype == want_X.dtype, field.name
        assert torch.equal(got_X.cpu(), want_X), (field.name, got_X, want_X)


def both(
    device: str,
    plan: Plan,
    canvas: Canvas,
    predicted_BC: torch.Tensor,
    score_BC: torch.Tensor,
    log_odds_BC: torch.Tensor,
) -> Canvas:
    """One step by both; the reference's canvas."""
    want, want_written = reference.refine_canvas(plan, canvas, predicted_BC, score_BC, log_odds_BC)
    # Rows of a wider tensor, as slots hand them over.
    wide_BC = torch.nn.functional.pad(canvas.ids_BC, (0, 5), value=7)
    rule_BC = torch.nn.functional.pad(canvas.rule_BC, (0, 3), value=FIXED)
    there = replace(
        on(device, canvas),
        ids_BC=wide_BC.to(device)[:, :-5],
        rule_BC=rule_BC.to(device)[:, :-3],
    )
    got, written = refine_canvas(
        on(device, plan),
        there,
        predicted_BC.to(device),
        score_BC.to(device),
        log_odds_BC.to(device),
    )
    assert_same(got, want)
    assert_same(written, want_written)
    return want


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_reference(device: str, seed: int) -> None:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    plan = draw_plan(rng, generator)
    canvas = draw_canvas(plan, rng, generator)
    dtype = rng.choice([torch.float32, torch.float64])
    calm_BC = torch.randint(0, 9, canvas.ids_BC.shape, generator=generator)
    for _ in range(4):
        drawn_BC = torch.randint(0, 10, calm_BC.shape, generator=generator)
        predicted_BC = torch.where(drawn_BC < 2, drawn_BC, calm_BC)
        # Few different scores: ties.
        score_BC = torch.randint(0, 4, calm_BC.shape, generator=generator).to(dtype)
        score_BC[torch.rand(calm_BC.shape, generator=generator) < 0.2] = -torch.inf
        log_odds_BC = torch.randint(0, 4, calm_BC.shape, generator=generator).to(dtype)
        canvas = both(device, plan, canvas, predicted_BC, score_BC, log_odds_BC)
        if canvas.done_B.all():
            break


@pytest.mark.parametrize("columns", [128, 257])
def test_long_canvases(device: str, columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    whole = torch.tensor([columns])
    plan = Plan(
        mask_id=MASK,
        most_blocks=1,
        length_B=whole,
        block_length_B=whole,
        blocks_B=torch.tensor([1]),
        steps_B=torch.tensor([3]),
        refine_B=torch.tensor([True]),
        refine_from_B=torch.tensor([0]),
        refine_fraction_B=torch.tensor([0.37], dtype=torch.float64),
        least_B=torch.tensor([7]),
        reveal_above_B=torch.tensor([1.5], dtype=torch.float64),
        end_above_B=torch.tensor([0.5], dtype=torch.float64),
        edit_above_B=torch.tensor([-1.0], dtype=torch.float64),
        extra_B=torch.tensor([2]),
        shrinks_B=torch.tensor([True]),
        official_B=torch.tensor([False]),
        stops_BQL=torch.tensor([[[8, 8, 8]]]),
        stop_lengths_BQ=torch.tensor([[3]]),
        stop_span_B=torch.tensor([3]),
    )
    canvas = draw_canvas(plan, random.Random(0), generator)
    shape = canvas.ids_BC.shape
    for _ in range(2):
        predicted_BC = torch.randint(7, 9, shape, generator=generator)
        score_BC = torch.randn(shape, generator=generator).round(decimals=1)
        canvas = both(device, plan, canvas, predicted_BC, score_BC, score_BC)


def test_scores_that_are_no_numbers_do_not_reveal_more_than_planned(device: str) -> None:
    plan = draw_plan(random.Random(0), torch.Generator().manual_seed(0)).select(torch.tensor([0]))
    plan = replace(
        plan,
        length_B=torch.tensor([6]),
        block_length_B=torch.tensor([6]),
        blocks_B=torch.tensor([1]),
        steps_B=torch.tensor([3]),
        least_B=torch.tensor([0]),
        reveal_above_B=torch.tensor([inf], dtype=torch.float64),
    )
    ids_BC = torch.full((1, 6), MASK)
    blank = Canvas.blank(ids_BC, plan.length_B, plan.length_B)
    canvas = reference.enter_block(plan, blank, torch.tensor([True]))
    score_BC = torch.full((1, 6), torch.nan)
    _, written = refine_canvas(
        on(device, plan),
        on(device, canvas),
        torch.ones_like(ids_BC).to(device),
        score_BC.to(device),
        score_BC.to(device),
    )
    assert written.revealed_BC.tolist() == [[True, True, False, False, False, False]]


def test_arguments_that_do_not_fit_are_refused() -> None:
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    plan = draw_plan(rng, generator)
    canvas = draw_canvas(plan, rng, generator)
    ids_BC, score_BC = canvas.ids_BC, torch.zeros(canvas.ids_BC.shape)
    with pytest.raises(ValueError, match="predicted must be"):
        refine_canvas(plan, canvas, ids_BC[:, 1:], score_BC, score_BC)
    with pytest.raises(ValueError, match="int32"):
        refine_canvas(plan, canvas, ids_BC.int(), score_BC, score_BC)
    with pytest.raises(ValueError, match="floating point"):
        refine_canvas(plan, canvas, ids_BC, ids_BC, score_BC)
    with pytest.raises(ValueError, match="contiguous"):
        refine_canvas(
            plan.select(torch.zeros(9, dtype=torch.int64)), canvas, ids_BC, score_BC, score_BC
        )

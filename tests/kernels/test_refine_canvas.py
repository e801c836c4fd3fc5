"""`refine_canvas` step by step on canvases written out; `test_sampler` has the random ones."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import torch

from kernels import ops
from kernels.canvas import FIXED, REMEMBERED, SIGHT, Canvas, Plan

MASK = 9
STOP = 8


def plan_of(length: int, **changes: Any) -> Plan:
    """A plan for one request; numbers stand for one-element tensors."""
    values: dict[str, Any] = {
        "block_length_B": length,
        "blocks_B": 1,
        "steps_B": 4,
        "refine_B": True,
        "refine_from_B": 0,
        "refine_fraction_B": 1.0,
        "least_B": 0,
        "reveal_above_B": inf,
        "end_above_B": inf,
        "edit_above_B": -inf,
        "extra_B": 0,
        "shrinks_B": False,
        "official_B": False,
        "stops_BQL": [[[STOP]]],
        "stop_lengths_BQ": [[1]],
        "stop_span_B": 1,
    } | changes
    tensors = {
        name: torch.tensor(value if isinstance(value, list) else [value])
        for name, value in values.items()
    }
    for name in ("refine_fraction_B", "reveal_above_B", "end_above_B", "edit_above_B"):
        tensors[name] = tensors[name].double()
    return Plan(
        mask_id=MASK,
        most_blocks=int(tensors["blocks_B"].max()),
        length_B=torch.tensor([length]),
        **tensors,
    )


def canvas_of(plan: Plan, ids: list[int]) -> Canvas:
    """Canvas in its first block."""
    ids_BC = torch.tensor([ids])
    stop_B = torch.where(plan.official_B, plan.length_B, ops.first_stop(plan, ids_BC).amin(dim=1))
    return ops.enter_block(plan, Canvas.blank(ids_BC, stop_B, plan.length_B), torch.tensor([True]))


def step(
    plan: Plan, canvas: Canvas, predicted: list[int], score: list[float] | None = None
) -> Canvas:
    score_BC = torch.tensor([score or [0.0] * len(predicted)]).double()
    return ops.refine_canvas(plan, canvas, torch.tensor([predicted]), score_BC, score_BC)[0]


def ids_of(canvas: Canvas) -> list[int]:
    row: list[int] = canvas.ids_BC[0].tolist()
    return row


def test_reveals_the_best_and_breaks_ties_to_the_lower_position() -> None:
    plan = plan_of(6, steps_B=3)
    canvas = step(plan, canvas_of(plan, [MASK] * 6), [0, 1, 2, 3, 4, 5], [1, 2, 0, 2, 2, 1])
    assert ids_of(canvas) == [MASK, 1, MASK, 3, MASK, MASK]
    canvas = step(plan, canvas, [0, 1, 2, 3, 4, 5])
    assert ids_of(canvas) == [0, 1, 2, 3, MASK, MASK]


def test_ties_among_many_positions() -> None:
    plan = plan_of(128, steps_B=2)
    canvas = step(plan, canvas_of(plan, [MASK] * 128), [1] * 128)
    assert ids_of(canvas) == [1] * 64 + [MASK] * 64


def test_a_score_of_minus_infinity_is_still_a_candidate() -> None:
    plan = plan_of(3, steps_B=1)
    canvas = step(plan, canvas_of(plan, [5, MASK, MASK]), [1, 2, 3], [0.0, -torch.inf, -torch.inf])
    assert ids_of(canvas) == [1, 2, 3]


def test_tokens_revealed_in_the_step_are_not_counted_as_revised() -> None:
    plan = plan_of(4, steps_B=4)
    predicted, score = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    canvas = canvas_of(plan, [5, MASK, MASK, MASK])
    _, written = ops.refine_canvas(plan, canvas, predicted, score, score)
    assert written.revised_BC[0].tolist() == [True, False, False, False]
    assert written.revealed_BC[0].tolist() == [False, True, False, False]


def test_without_refining_known_tokens_stay() -> None:
    plan = plan_of(4, refine_B=False)
    canvas = step(plan, canvas_of(plan, [5, MASK, MASK, MASK]), [1, 2, 3, 4])
    assert ids_of(canvas) == [5, 2, MASK, MASK]


def test_refines_the_most_confident_fraction() -> None:
    plan = plan_of(6, refine_fraction_B=0.5)
    canvas = step(plan, canvas_of(plan, [5] * 5 + [MASK]), [1] * 6, [0, 3, 1, 2, 3, 9])
    assert ids_of(canvas) == [5, 1, 5, 5, 1, 1]


def test_blocks_one_after_the_other() -> None:
    plan = plan_of(6, block_length_B=2, blocks_B=3, steps_B=1)
    canvas = canvas_of(plan, [MASK] * 6)
    for known in (2, 4, 6):
        canvas = step(plan, canvas, [1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 2, 2])
        assert ids_of(canvas) == [1, 2, 3, 4, 5, 6][:known] + [MASK] * (6 - known)
    assert canvas.done_B.tolist() == [True]
    assert canvas.forwards_B.tolist() == [3]


def test_text_before_the_stop_is_enough() -> None:
    plan = plan_of(6, steps_B=6, refine_B=False)
    canvas = step(plan, canvas_of(plan, [MASK] * 6), [1, 2, STOP, 4, 5, 6], [0, 0, 9, 0, 0, 0])
    assert canvas.stop_B.tolist() == [2]
    canvas = step(plan, canvas, [1, 2, 3, 4, 5, 6], [0, 1, 9, 9, 9, 9])
    assert ids_of(canvas) == [MASK, 2, STOP, MASK, MASK, MASK]
    canvas = step(plan, canvas, [1, 2, 3, 4, 5, 6])
    assert ids_of(canvas) == [1, 2, STOP, MASK, MASK, MASK]
    assert canvas.done_B.tolist() == [True]


def test_a_stop_that_is_revised_away_is_gone_and_the_masks_behind_it_are_caught_up() -> None:
    plan = plan_of(6, steps_B=3)
    canvas = step(plan, canvas_of(plan, [MASK] * 6), [1, STOP, 3, 4, 5, 6], [0, 9, 0, 0, 0, 0])
    assert (ids_of(canvas)[:2], canvas.stop_B.tolist()) == ([1, STOP], [1])
    # All before the stop is known: the caption would end here, had the stop stayed.
    assert canvas.done_B.tolist() == [True]
    canvas = step(plan, canvas_of(plan, [MASK, STOP, *[MASK] * 4]), [1, 2, 3, 4, 5, 6])
    assert (ids_of(canvas), canvas.stop_B.tolist()) == ([1, 2, *[MASK] * 4], [6])
    canvas = step(plan, canvas, [1, 2, 3, 4, 5, 6])
    canvas = step(plan, canvas, [1, 2, 3, 4, 5, 6])
    assert ids_of(canvas) == [1, 2, 3, 4, 5, 6]
    assert canvas.done_B.tolist() == [True]


def test_officially_the_stop_stays_where_it_was() -> None:
    plan = plan_of(4, steps_B=4, official_B=True)
    canvas = step(plan, canvas_of(plan, [MASK] * 4), [1, STOP, 3, 4], [0, 9, 0, 0])
    canvas = step(plan, canvas, [1, 2, 3, 4], [0, 0, 9, 9])
    assert ids_of(canvas) == [1, 2, MASK, MASK]
    assert (canvas.stop_B.tolist(), canvas.done_B.tolist()) == ([1], [True])


def test_the_last_step_does_not_revise_the_stop_away_before_masks() -> None:
    plan = plan_of(4, steps_B=1)
    canvas = step(plan, canvas_of(plan, [MASK, STOP, MASK, MASK]), [1, 2, 3, 4])
    assert ids_of(canvas) == [1, STOP, MASK, MASK]
    plan = plan_of(4, steps_B=1)
    canvas = step(plan, canvas_of(plan, [MASK, 5, 5, STOP]), [1, 2, 3, 4])
    assert ids_of(canvas) == [1, 2, 3, 4]


def test_the_block_ends_where_it_ends_although_a_stop_is_known() -> None:
    plan = plan_of(4, block_length_B=2, blocks_B=2, steps_B=2)
    canvas = step(plan, canvas_of(plan, [MASK, MASK, MASK, STOP]), [1, 2, 3, STOP], [0, 1, 9, 9])
    assert ids_of(canvas) == [MASK, 2, MASK, STOP]


def test_officially_the_block_does_not_end_once_a_stop_is_known() -> None:
    plan = plan_of(4, block_length_B=2, blocks_B=2, steps_B=2, official_B=True)
    # Officially the stop of a draft is seen after the first step.
    canvas = step(plan, canvas_of(plan, [MASK, MASK, MASK, STOP]), [1, 2, 3, STOP], [0, 1, 9, 9])
    assert ids_of(canvas) == [MASK, 2, MASK, STOP]
    canvas = step(plan, canvas, [1, 2, 3, STOP], [0, 1, 9, 9])
    assert ids_of(canvas) == [MASK, 2, 3, STOP]


def test_a_complete_draft_is_refined_until_nothing_changes() -> None:
    plan = plan_of(3, steps_B=5)
    canvas = canvas_of(plan, [1, 2, 3])
    assert canvas.done_B.tolist() == [False]
    canvas = step(plan, canvas, [1, 2, 4])
    assert canvas.done_B.tolist() == [False]
    canvas = step(plan, canvas, [1, 2, 4])
    assert (ids_of(canvas), canvas.done_B.tolist()) == ([1, 2, 4], [True])


def test_a_complete_draft_is_refined_from_the_first_step() -> None:
    plan = plan_of(3, steps_B=4, refine_from_B=2)
    assert ids_of(step(plan, canvas_of(plan, [1, 2, 3]), [4, 5, 6])) == [4, 5, 6]
    assert ids_of(step(plan, canvas_of(plan, [1, 2, MASK]), [4, 5, 6])) == [1, 2, 6]


def test_a_complete_draft_is_left_alone_officially_and_without_refining() -> None:
    for changes in ({"official_B": True}, {"refine_B": False}):
        assert canvas_of(plan_of(3, **changes), [1, 2, 3]).done_B.tolist() == [True]


def test_a_cycle_ends_the_refining() -> None:
    for period in (2, 3, REMEMBERED):
        plan = plan_of(2, steps_B=100)
        canvas = canvas_of(plan, [0, 0])
        steps = 0
        while not canvas.done_B.item():
            steps += 1
            canvas = step(plan, canvas, [steps % period, 0])
        assert steps == period


def test_a_cycle_that_is_too_long_to_see_ends_with_the_steps() -> None:
    plan = plan_of(2, steps_B=30)
    canvas = canvas_of(plan, [0, 0])
    for number in range(1, 31):
        assert canvas.done_B.tolist() == [False]
        canvas = step(plan, canvas, [0, 10 + number % (REMEMBERED + 1)])
    assert canvas.done_B.tolist() == [True]


def test_a_finished_canvas_does_not_move() -> None:
    plan = plan_of(2, steps_B=1)
    done = step(plan, canvas_of(plan, [MASK, MASK]), [1, 2])
    after = step(plan, done, [3, 4])
    assert ids_of(after) == [1, 2]
    assert after.forwards_B.tolist() == [1]


def test_reveals_what_is_above_the_threshold_and_at_least_the_least() -> None:
    plan = plan_of(6, steps_B=6, least_B=1, reveal_above_B=2.0)
    canvas = step(plan, canvas_of(plan, [MASK] * 6), [0, 1, 2, 3, 4, 5], [1, 3, 2, 0, 5, 1])
    assert ids_of(canvas) == [MASK, 1, MASK, MASK, 4, MASK]
    canvas = step(plan, canvas, [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 0, 0])
    assert ids_of(canvas) == [MASK, 1, MASK, 3, 4, MASK]
    plan = plan_of(6, steps_B=6, least_B=2, reveal_above_B=2.0)
    canvas = step(plan, canvas_of(plan, [MASK] * 6), [0, 1, 2, 3, 4, 5], [1, 3, 2, 0, 0, 1])
    assert ids_of(canvas) == [MASK, 1, 2, MASK, MASK, MASK]


def test_predicted_stops_above_the_end_threshold_are_revealed_beside_the_schedule() -> None:
    plan = plan_of(6, steps_B=3, least_B=2, end_above_B=2.0)
    predicted = [0, 1, STOP, STOP, STOP, STOP]
    canvas = step(plan, canvas_of(plan, [MASK] * 6), predicted, [0, 3, 2, 4, 5, 1])
    # The unsure stop at 2 is of the schedule's two, the one at 5 of none.
    assert ids_of(canvas) == [MASK, 1, STOP, STOP, STOP, MASK]
    assert canvas.stop_B.tolist() == [2]
    canvas = step(plan, canvas, predicted, [9, 0, 9, 9, 9, 9])
    assert (ids_of(canvas)[:3], canvas.done_B.tolist()) == ([0, 1, STOP], [True])


def test_only_stop_sequences_of_one_token_are_ends() -> None:
    plan = plan_of(
        4,
        steps_B=4,
        least_B=1,
        end_above_B=0.0,
        stops_BQL=[[[STOP, 7], [6, -1], [5, -1]]],
        stop_lengths_BQ=[[2, 1, 0]],
        stop_span_B=2,
    )
    canvas = step(plan, canvas_of(plan, [MASK] * 4), [1, 5, STOP, 6], [2, 1, 1, 1])
    assert ids_of(canvas) == [1, MASK, MASK, 6]


def test_rows_behind_a_stop_that_stayed_are_out_of_sight_until_it_moves() -> None:
    plan = plan_of(24, steps_B=24, shrinks_B=True)
    draft = [1, 2, MASK, STOP, *[5] * 20]
    canvas = canvas_of(plan, draft)
    assert canvas.sight_B.tolist() == [24]
    canvas = step(plan, canvas, [*draft[:2], 3, STOP, *[5] * 20], [9, 9, 0, *[9] * 21])
    assert (canvas.stop_B.tolist(), canvas.sight_B.tolist()) == ([3], [SIGHT])
    # What is out of sight is not revised, whatever is predicted there.
    canvas = canvas_of(plan, [MASK, MASK, *draft[2:]])
    canvas = step(plan, canvas, [0] * 3 + [STOP] + [5] * 20)
    canvas = step(plan, canvas, [1, 1, 1, 6, *[7] * 20])
    assert ids_of(canvas)[3:] == [6, *[7] * 4, *[5] * 16]
    assert (canvas.stop_B.tolist(), canvas.sight_B.tolist()) == ([24], [24])


def test_no_threshold_reveals_beyond_the_block_or_the_stop() -> None:
    plan = plan_of(6, block_length_B=3, blocks_B=2, least_B=1, reveal_above_B=0.0)
    canvas = step(plan, canvas_of(plan, [MASK] * 6), [0, 1, 2, 3, 4, 5], [9] * 6)
    assert ids_of(canvas) == [0, 1, 2, MASK, MASK, MASK]
    canvas = step(plan, canvas_of(plan, [MASK, STOP, *[MASK] * 4]), [0, STOP, 2, 3, 4, 5], [9] * 6)
    assert ids_of(canvas) == [0, STOP, MASK, MASK, MASK, MASK]


def test_replaces_a_token_only_by_a_surer_one_than_the_threshold() -> None:
    plan = plan_of(4, edit_above_B=1.0)
    canvas = canvas_of(plan, [5, 5, 5, MASK])
    predicted, score = torch.tensor([[1, 2, 5, 4]]), torch.tensor([[1.0, 1.5, 0.0, 0.0]])
    canvas, written = ops.refine_canvas(plan, canvas, predicted, score, score)
    assert ids_of(canvas) == [5, 2, 5, 4]
    # The same token again is confirmed, however unsure.
    assert written.revised_BC[0].tolist() == [False, True, True, False]


def test_extra_steps_refine_until_nothing_changes() -> None:
    plan = plan_of(3, steps_B=1, extra_B=5)
    canvas = step(plan, canvas_of(plan, [MASK] * 3), [1, 2, 3])
    canvas = step(plan, canvas, [1, 2, 4])
    assert (ids_of(canvas), canvas.done_B.tolist()) == ([1, 2, 4], [False])
    canvas = step(plan, canvas, [1, 2, 4])
    assert (canvas.done_B.tolist(), canvas.forwards_B.tolist()) == ([True], [3])


def test_extra_steps_end_at_their_number_or_with_a_cycle() -> None:
    for extra, period, want in ((4, 99, 4), (50, 2, 2), (50, REMEMBERED, REMEMBERED), (0, 2, 0)):
        plan = plan_of(2, steps_B=1, extra_B=extra)
        canvas = step(plan, canvas_of(plan, [MASK, MASK]), [0, 0])
        steps = 0
        while not canvas.done_B.item():
            steps += 1
            canvas = step(plan, canvas, [steps % period, 0])
        assert steps == want


def test_extra_steps_do_not_revise_the_stop_away_before_masks() -> None:
    plan = plan_of(4, steps_B=4, extra_B=3)
    canvas = step(plan, canvas_of(plan, [MASK, STOP, MASK, MASK]), [1, STOP, 3, 4])
    canvas = step(plan, canvas, [2, 2, 3, 4])
    assert (ids_of(canvas), canvas.done_B.tolist()) == ([2, STOP, MASK, MASK], [False])
    # With nothing hidden behind it, it may go.
    canvas = step(plan, canvas_of(plan, [MASK, STOP, 5, 5]), [1, STOP, 5, 5])
    assert ids_of(step(plan, canvas, [1, 2, 5, 5])) == [1, 2, 5, 5]


def test_extra_steps_are_counted_a_block() -> None:
    plan = plan_of(4, block_length_B=2, blocks_B=2, steps_B=1, extra_B=2)
    canvas = canvas_of(plan, [MASK] * 4)
    for number in range(3):
        assert canvas.block_B.tolist() == [0]
        canvas = step(plan, canvas, [number, 1, 2, 3])
    assert (canvas.block_B.tolist(), ids_of(canvas)) == ([1], [2, 1, MASK, MASK])
    for number in range(3):
        assert canvas.done_B.tolist() == [False]
        canvas = step(plan, canvas, [0, 0, number, 3])
    assert (canvas.done_B.tolist(), canvas.forwards_B.tolist()) == ([True], [6])


def test_other_requests_columns_do_not_hide_a_cycle() -> None:
    plan = plan_of(2, steps_B=9)
    canvas = step(plan, canvas_of(plan, [1, 2]), [1, 3])
    wider_BC = torch.tensor([[*ids_of(canvas), MASK, MASK]])
    wider = replace(canvas, ids_BC=wider_BC, rule_BC=torch.zeros_like(wider_BC))
    canvas = step(plan, wider, [1, 3, 0, 0])
    assert canvas.done_B.tolist() == [True]


def test_what_a_template_fixes_is_neither_revised_nor_part_of_what_may_be() -> None:
    plan = plan_of(4, steps_B=9, refine_fraction_B=torch.tensor([0.5]).double())
    canvas = canvas_of(plan, [1, 2, 3, 4])
    fixed = replace(canvas, rule_BC=torch.tensor([[FIXED, 0, FIXED, 0]]))
    # Half of four, and half of the two that are open.
    assert ids_of(step(plan, canvas, [5, 5, 5, 5], [4, 3, 2, 1])) == [5, 5, 3, 4]
    assert ids_of(step(plan, fixed, [5, 5, 5, 5], [4, 3, 2, 1])) == [1, 5, 3, 4]


def test_stop_sequences_do_not_reach_into_the_suffix() -> None:
    plan = plan_of(3, stops_BQL=[[[1, 2], [5, -1]]], stop_lengths_BQ=[[2, 1]], stop_span_B=2)
    for ids, want in (
        ([1, 2, 0, 0], [0, 3]),
        ([0, 1, 2, 0], [1, 3]),
        ([0, 0, 1, 2], [3, 3]),
        ([1, 5, 1, 5], [3, 1]),
    ):
        assert ops.first_stop(plan, torch.tensor([ids])).tolist() == [want]

"""`refine_canvas` in Triton: one program a request.

Shape suffixes: B requests, C canvas positions, Q stop sequences, L tokens of a stop sequence,
H remembered canvases.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels.canvas import FIXED, SIGHT, Canvas, Plan, Written
from kernels.counter import derive

if TYPE_CHECKING:
    from torch import Tensor

COMPARED = 4096
"""Scores that are compared with each other at once, as a power of two."""


def refine_canvas(
    plan: Plan, canvas: Canvas, predicted_BC: Tensor, score_BC: Tensor, log_odds_BC: Tensor
) -> tuple[Canvas, Written]:
    """`reference.refine_canvas`. NaN scores go first.

    Raises:
        ValueError: ids, predictions and scores differ in shape, or a tensor is of a wrong type.
    """
    ids_BC = canvas.ids_BC
    batch, columns = ids_BC.shape
    _check(plan, canvas, predicted_BC, score_BC, log_odds_BC)
    moved = replace(
        canvas,
        ids_BC=torch.empty((batch, columns), dtype=torch.int64, device=ids_BC.device),
        block_B=torch.empty_like(canvas.block_B),
        step_B=torch.empty_like(canvas.step_B),
        block_masks_B=torch.empty_like(canvas.block_masks_B),
        stop_B=torch.empty_like(canvas.stop_B),
        sight_B=torch.empty_like(canvas.sight_B),
        polish_B=torch.empty_like(canvas.polish_B),
        refined_B=torch.empty_like(canvas.refined_B),
        seen_BH=torch.empty_like(canvas.seen_BH),
        forwards_B=torch.empty_like(canvas.forwards_B),
        done_B=torch.empty_like(canvas.done_B),
    )
    written = Written(
        revealed_BC=torch.empty_like(moved.ids_BC, dtype=torch.bool),
        revised_BC=torch.empty_like(moved.ids_BC, dtype=torch.bool),
        count_B=torch.empty_like(canvas.stop_B),
        bound_B=torch.empty_like(canvas.stop_B),
    )
    block = triton.next_power_of_2(columns)
    if batch and columns:
        _canvas_kernel[(batch,)](
            plan.length_B,
            plan.block_length_B,
            plan.steps_B,
            plan.refine_B,
            plan.refine_from_B,
            plan.refine_fraction_B,
            plan.least_B,
            plan.reveal_above_B,
            plan.end_above_B,
            plan.edit_above_B,
            plan.extra_B,
            plan.shrinks_B,
            plan.official_B,
            plan.stops_BQL,
            plan.stop_lengths_BQ,
            plan.stop_span_B,
            ids_BC,
            canvas.rule_BC,
            canvas.block_B,
            canvas.step_B,
            canvas.block_masks_B,
            canvas.stop_B,
            canvas.sight_B,
            canvas.polish_B,
            canvas.refined_B,
            canvas.seen_BH,
            canvas.forwards_B,
            canvas.done_B,
            predicted_BC,
            score_BC,
            log_odds_BC,
            moved.ids_BC,
            moved.block_B,
            moved.step_B,
            moved.block_masks_B,
            moved.stop_B,
            moved.sight_B,
            moved.polish_B,
            moved.refined_B,
            moved.seen_BH,
            moved.forwards_B,
            moved.done_B,
            written.revealed_BC,
            written.revised_BC,
            written.count_B,
            written.bound_B,
            ids_BC.stride(0),
            canvas.rule_BC.stride(0),
            predicted_BC.stride(0),
            score_BC.stride(0),
            log_odds_BC.stride(0),
            plan.mask_id,
            columns,
            plan.stops_BQL.shape[1],
            plan.stops_BQL.shape[2],
            canvas.seen_BH.shape[1],
            BLOCK=block,
            COMPARED=max(1, COMPARED // block),
            HISTORY=triton.next_power_of_2(canvas.seen_BH.shape[1]),
            SIGHT=SIGHT,
            FIXED=FIXED,
        )
    return moved, written


def _check(
    plan: Plan, canvas: Canvas, predicted_BC: Tensor, score_BC: Tensor, log_odds_BC: Tensor
) -> None:
    """Raise ValueError unless the tensors of a step fit each other."""
    shape = canvas.ids_BC.shape
    named = (("predicted", predicted_BC), ("score", score_BC), ("log-odds", log_odds_BC))
    for name, tensor in (("rule", canvas.rule_BC), *named):
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(tensor.shape)}")
    whole = (("ids", canvas.ids_BC), ("rule", canvas.rule_BC), ("predicted", predicted_BC))
    for name, tensor in whole:
        if tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be int64, got {tensor.dtype}")
    for name, tensor in named[1:]:
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    for tensor in (canvas.ids_BC, canvas.rule_BC, predicted_BC, score_BC, log_odds_BC):
        if tensor.stride(1) != 1:
            raise ValueError(f"positions must lie side by side, got strides {tensor.stride()}")
    for tensor in (plan.stops_BQL, plan.stop_lengths_BQ, canvas.seen_BH):
        if not tensor.is_contiguous() or len(tensor) != len(canvas.ids_BC):
            raise ValueError(
                f"{len(canvas.ids_BC)} requests need contiguous tensors of as many rows, "
                f"got {tuple(tensor.shape)} with strides {tensor.stride()}"
            )


@triton.jit  # type: ignore[untyped-decorator]
def _before(score: tl.tensor, at: tl.tensor, other: tl.tensor, other_at: tl.tensor) -> tl.tensor:
    """[C, J]: whether the other candidate is taken earlier: higher, or as high and lower down."""
    higher = other[None, :] > score[:, None]
    level = other[None, :] == score[:, None]
    return higher | (level & (other_at[None, :] < at[:, None]))


@triton.jit  # type: ignore[untyped-decorator]
def _single_stops(
    predicted: tl.tensor,
    stops_ptr: tl.tensor,
    stop_lengths_ptr: tl.tensor,
    sequences: tl.tensor,
    longest: tl.tensor,
) -> tl.tensor:
    """Whether a token alone is a stop sequence of its request."""
    found = predicted != predicted
    for sequence in range(0, sequences):
        size = tl.load(stop_lengths_ptr + sequence)
        found = found | ((predicted == tl.load(stops_ptr + sequence * longest)) & (size == 1))
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _scores(score_ptr: tl.tensor, at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Scores in float64; NaN is the highest, and -inf still above what is no candidate."""
    score = tl.load(score_ptr + at, mask=inside, other=0.0).to(tl.float64)
    score = tl.where(score != score, float("inf"), score)
    return tl.maximum(score, -1.7976931348623157e308)


@triton.jit  # type: ignore[untyped-decorator]
def _canvas_kernel(
    length_ptr: tl.tensor,
    block_length_ptr: tl.tensor,
    steps_ptr: tl.tensor,
    refine_ptr: tl.tensor,
    refine_from_ptr: tl.tensor,
    refine_fraction_ptr: tl.tensor,
    least_ptr: tl.tensor,
    reveal_above_ptr: tl.tensor,
    end_above_ptr: tl.tensor,
    edit_above_ptr: tl.tensor,
    extra_ptr: tl.tensor,
    shrinks_ptr: tl.tensor,
    official_ptr: tl.tensor,
    stops_ptr: tl.tensor,
    stop_lengths_ptr: tl.tensor,
    stop_span_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    rule_ptr: tl.tensor,
    block_ptr: tl.tensor,
    step_ptr: tl.tensor,
    block_masks_ptr: tl.tensor,
    stop_ptr: tl.tensor,
    sight_ptr: tl.tensor,
    polish_ptr: tl.tensor,
    refined_ptr: tl.tensor,
    seen_ptr: tl.tensor,
    forwards_ptr: tl.tensor,
    done_ptr: tl.tensor,
    predicted_ptr: tl.tensor,
    score_ptr: tl.tensor,
    log_odds_ptr: tl.tensor,
    new_ids_ptr: tl.tensor,
    new_block_ptr: tl.tensor,
    new_step_ptr: tl.tensor,
    new_block_masks_ptr: tl.tensor,
    new_stop_ptr: tl.tensor,
    new_sight_ptr: tl.tensor,
    new_polish_ptr: tl.tensor,
    new_refined_ptr: tl.tensor,
    new_seen_ptr: tl.tensor,
    new_forwards_ptr: tl.tensor,
    new_done_ptr: tl.tensor,
    revealed_ptr: tl.tensor,
    revised_ptr: tl.tensor,
    count_ptr: tl.tensor,
    bound_ptr: tl.tensor,
    ids_stride: tl.tensor,
    rule_stride: tl.tensor,
    predicted_stride: tl.tensor,
    score_stride: tl.tensor,
    log_odds_stride: tl.tensor,
    mask_id: tl.tensor,
    columns: tl.tensor,
    sequences: tl.tensor,
    longest: tl.tensor,
    history: tl.tensor,
    BLOCK: tl.constexpr,
    COMPARED: tl.constexpr,
    HISTORY: tl.constexpr,
    SIGHT: tl.constexpr,
    FIXED: tl.constexpr,
) -> None:
    """The request `program_id(0)`."""
    request = tl.program_id(0).to(tl.int64)
    length = tl.load(length_ptr + request)
    block_length = tl.load(block_length_ptr + request)
    steps = tl.load(steps_ptr + request)
    refine = tl.load(refine_ptr + request)
    official = tl.load(official_ptr + request)
    fraction = tl.load(refine_fraction_ptr + request)
    block = tl.load(block_ptr + request)
    step = tl.load(step_ptr + request)
    block_masks = tl.load(block_masks_ptr + request)
    stop = tl.load(stop_ptr + request)
    sight = tl.load(sight_ptr + request)
    span = tl.load(stop_span_ptr + request)
    polish = tl.load(polish_ptr + request)
    refined = tl.load(refined_ptr + request)
    reveal_above = tl.load(reveal_above_ptr + request)
    end_above = tl.load(end_above_ptr + request)
    edit_above = tl.load(edit_above_ptr + request)
    extra = tl.where(polish, 0, tl.load(extra_ptr + request))
    done = tl.load(done_ptr + request)
    running = done == 0

    at = tl.arange(0, BLOCK)
    inside = at < columns
    ids_ptr += request * ids_stride
    rule_ptr += request * rule_stride
    score_ptr += request * score_stride
    log_odds_ptr += request * log_odds_stride
    predicted_ptr += request * predicted_stride
    stops_ptr += request * sequences * longest
    stop_lengths_ptr += request * sequences
    ids = tl.load(ids_ptr + at, mask=inside, other=-1)
    predicted = tl.load(predicted_ptr + at, mask=inside, other=-1)
    masked = (ids == mask_id) & inside
    start = block * block_length
    end = start + block_length
    in_block = (at >= start) & (at < end) & inside
    stop_known = stop < length
    # Officially the block's end does not count once a stop is known.
    bound = tl.where(official & stop_known, stop, tl.minimum(stop, end))
    is_open = (at < bound) & running
    block_masked = masked & in_block

    # Officially fixed when the block starts; by default spread over the steps that are left, but
    # not less than the least.
    fixed = block_masks // steps + (step < block_masks % steps).to(tl.int64)
    left = tl.maximum(steps - step, 1)
    spread = (tl.sum(block_masked.to(tl.int64), axis=0) + left - 1) // left
    least = tl.load(least_ptr + request)
    count = tl.where(official, fixed, tl.maximum(spread, least))
    # Nothing is left to reveal: a step that only refines.
    any_open = tl.max((block_masked & is_open).to(tl.int32), axis=0) > 0
    filled = (official == 0) & (any_open == 0) & running
    begun = (step >= tl.load(refine_from_ptr + request)) | filled
    refining = refine & begun
    known = (ids != mask_id) & in_block & (at < sight) & refining & running
    known = known & (tl.load(rule_ptr + at, mask=inside, other=0) != FIXED)
    part = tl.floor(tl.sum(known.to(tl.int64), axis=0).to(tl.float64) * fraction)
    # A part is of the open positions, the whole is not: closed ones rank behind every part.
    part = tl.where(fraction < 1, part, 2.0 * BLOCK)

    # A position's rank is how many candidates of its kind go before it.
    score = _scores(score_ptr, at, inside)
    mask_rank = tl.zeros((BLOCK,), tl.int32)
    known_rank = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, columns, COMPARED):
        other_at = first + tl.arange(0, COMPARED)
        other_inside = other_at < columns
        other_ids = tl.load(ids_ptr + other_at, mask=other_inside, other=-1)
        other_score = _scores(score_ptr, other_at, other_inside)
        other_open = other_inside & (other_at < bound)
        other_predicted = tl.load(predicted_ptr + other_at, mask=other_inside, other=-1)
        other_odds = tl.load(log_odds_ptr + other_at, mask=other_inside, other=0.0).to(tl.float64)
        other_end = _single_stops(other_predicted, stops_ptr, stop_lengths_ptr, sequences, longest)
        other_end = other_end & (other_odds > end_above)
        other_masked = other_open & (other_ids == mask_id) & (other_end == 0)
        other_known = other_open & (other_ids != mask_id) & (other_at >= start) & (other_at < end)
        other_rule = tl.load(rule_ptr + other_at, mask=other_inside, other=0)
        other_known = other_known & (other_rule != FIXED)
        before = _before(score, at, other_score, other_at)
        mask_rank += tl.sum((before & other_masked[None, :]).to(tl.int32), axis=1)
        known_rank += tl.sum((before & other_known[None, :]).to(tl.int32), axis=1)
    log_odds = tl.load(log_odds_ptr + at, mask=inside, other=0.0).to(tl.float64)
    end_found = _single_stops(predicted, stops_ptr, stop_lengths_ptr, sequences, longest)
    end_found = end_found & (log_odds > end_above)
    planned = (mask_rank < count) & (end_found == 0)
    revealed = masked & is_open & (planned | end_found | (log_odds > reveal_above))
    revised = known & (tl.where(is_open, known_rank, BLOCK).to(tl.float64) < part)

    # Revising the stop away in the last step would leave the masks behind it in the caption.
    hidden = tl.max((block_masked & (revealed == 0)).to(tl.int32), axis=0) > 0
    last = (step + 1 == steps) | (filled & (polish == 0))
    kept = (official == 0) & last & stop_known & hidden
    in_stop = (at >= stop) & (at < stop + span)
    timid = (log_odds <= edit_above) | (log_odds != log_odds)
    timid = tl.where(edit_above == -float("inf"), False, timid)
    held = (in_stop & kept) | timid
    revised = revised & ((held & (predicted != ids)) == 0)
    ids = tl.where(revealed | revised, predicted, ids)

    # By default the earliest stop. Officially it only moves to earlier places and stays when it
    # is gone, and sequences are looked for in listed order until one is known.
    earliest = length
    sticky = stop
    known_stop = done != done
    for sequence in range(0, sequences):
        size = tl.load(stop_lengths_ptr + sequence)
        match = (at + size <= length) & (size > 0) & inside
        for offset in range(0, longest):
            token = tl.load(stops_ptr + sequence * longest + offset)
            following = tl.gather(ids, tl.minimum(at + offset, BLOCK - 1), 0)
            match = match & ((following == token) | (offset >= size))
        found = tl.min(tl.where(match, at.to(tl.int64), length), axis=0)
        earliest = tl.minimum(earliest, found)
        sticky = tl.where(known_stop, sticky, tl.minimum(sticky, found))
        known_stop = sticky < length
    new_stop = tl.where(done, stop, tl.where(official, sticky, earliest))
    # A stop that the step left where it was: rows behind it take no part in the next pass.
    shrunk = tl.minimum((new_stop + span + SIGHT - 1) // SIGHT * SIGHT, length)
    settled_stop = tl.load(shrinks_ptr + request) & (new_stop == stop)
    new_sight = tl.where(done, sight, tl.where(settled_stop, shrunk, length))
    stop_known = new_stop < length

    position = at.to(tl.int64)
    # Columns behind the answer come and go with other requests.
    mixed = tl.where(at < length, derive(ids, position), 0)
    code = tl.sum(mixed, axis=0) & 0x7FFFFFFFFFFFFFFF
    slot = tl.arange(0, HISTORY)
    seen = tl.load(seen_ptr + request * history + slot, mask=slot < history, other=-1)
    seen_before = tl.max((seen == code).to(tl.int32), axis=0) > 0
    next_step = step + 1
    next_refined = refined + filled.to(tl.int64)

    # Whether the block is over.
    masked = (ids == mask_id) & inside
    block_masked = masked & in_block
    any_masked = tl.max(block_masked.to(tl.int32), axis=0) > 0
    before_stop = masked & (at < new_stop)
    any_before = tl.max(before_stop.to(tl.int32), axis=0) > 0
    any_block_before = tl.max((before_stop & in_block).to(tl.int32), axis=0) > 0
    official_leaves = (any_masked == 0) | (stop_known & (any_before == 0))
    settled = (next_refined >= extra) | ((next_refined > 0) & seen_before)
    default_leaves = (any_block_before == 0) & tl.where(polish, seen_before, settled)
    leaves = tl.where(official, official_leaves, default_leaves)
    leaving = ((next_step >= steps + extra) | leaves) & running

    # The next block that has work. Beyond the answer there are no blocks.
    masked = masked & (at < length)
    before_stop = before_stop & (at < length)
    any_before = tl.max(before_stop.to(tl.int32), axis=0) > 0
    at_block = position // block_length
    official_work = masked & ((stop_known & (any_before == 0)) == 0)
    work = tl.where(official, official_work, before_stop | refine)
    reachable = inside & (at < length) & (at_block > block) & (at_block * block_length < new_stop)
    next_block = tl.min(tl.where(work & reachable, at_block, columns), axis=0)
    found_block = next_block < columns
    new_block = tl.where(leaving & found_block, next_block, block)
    in_next = at_block == tl.maximum(new_block, 0)
    next_masks = tl.sum((masked & in_next).to(tl.int64), axis=0)
    next_open = tl.sum((before_stop & in_next).to(tl.int64), axis=0)
    new_seen = tl.where(slot == next_step % history, code, seen)
    new_seen = tl.where(leaving, tl.where(slot == 0, code, -1), new_seen)

    out = request * columns + at
    tl.store(new_ids_ptr + out, ids, mask=inside)
    tl.store(revealed_ptr + out, revealed, mask=inside)
    tl.store(revised_ptr + out, revised, mask=inside)
    tl.store(count_ptr + request, count)
    tl.store(bound_ptr + request, bound)
    tl.store(new_block_ptr + request, new_block)
    tl.store(new_step_ptr + request, tl.where(leaving, 0, next_step))
    tl.store(new_block_masks_ptr + request, tl.where(leaving, next_masks, block_masks))
    tl.store(new_stop_ptr + request, new_stop)
    tl.store(new_sight_ptr + request, new_sight)
    tl.store(new_polish_ptr + request, tl.where(leaving, next_open == 0, polish))
    tl.store(new_refined_ptr + request, tl.where(leaving, 0, next_refined))
    tl.store(new_seen_ptr + request * history + slot, new_seen, mask=slot < history)
    forwards = tl.load(forwards_ptr + request)
    tl.store(new_forwards_ptr + request, forwards + running.to(tl.int64))
    tl.store(new_done_ptr + request, done | (leaving & (found_block == 0)))

"""The meaning of every kernel in plain torch.

Shape suffixes: B requests, C canvas positions, T rows, V vocabulary, S suppressed ids, K blocks,
Q stop sequences, L tokens of a stop sequence, H remembered canvases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kernels import noise
from kernels.canvas import FIXED, SIGHT, Canvas, Plan, Written

if TYPE_CHECKING:
    from torch import Tensor

NEGLIGIBLE = -80.0
"""Logits this far below the highest are raised to it: on a CPU exp is many times slower where
its result is subnormal, and the difference is below 1e-34 of the probability."""


@dataclass(frozen=True, slots=True)
class Selection:
    """One predicted token a row."""

    ids_T: Tensor
    log_odds_T: Tensor
    """log p/(1-p) of the token. Ranks like p, also where p rounds to 1."""
    logsumexp_T: Tensor
    """Of the allowed ids."""
    entropy_T: Tensor | None
    """In nats, of the allowed ids; None unless asked for."""


def select_tokens(
    logits_TV: Tensor,
    suppressed_S: Tensor,
    suppress_T: Tensor,
    avoided_id: int,
    avoid_T: Tensor,
    temperature_T: Tensor | None = None,
    uniform_TV: Tensor | None = None,
    *,
    entropy: bool = False,
) -> Selection:
    """The most likely allowed token of each row, and how likely it is.

    Overwrites `logits_TV`, float32 or float64. At the rows of `suppress_T` the ids
    `suppressed_S` leave the distribution; at those of `avoid_T` the `avoided_id` cannot be
    taken but keeps its share of the probability. With a temperature (0 = none), the token
    maximises logit - temperature * log(-log(u)), the Gumbel-max form of the official
    exp(logit) / (-log u)^temperature; its confidence comes from the logits without noise. A
    token's own weight is left out of the sum that it is weighed against, so nothing cancels
    when its probability is close to 1.
    """
    columns_TS = logits_TV.index_select(1, suppressed_S)
    columns_TS.masked_fill_(suppress_T[:, None], -torch.inf)
    logits_TV.index_copy_(1, suppressed_S, columns_TS)
    avoided_T = logits_TV[:, avoided_id].clone()
    logits_TV[:, avoided_id] = avoided_T.masked_fill(avoid_T, -torch.inf)
    highest_T, ids_T = _highest(logits_TV)
    if temperature_T is not None and uniform_TV is not None:
        gumbel_TV = -torch.log(-torch.log(uniform_TV))
        noisy_TV = logits_TV.double() + temperature_T[:, None] * gumbel_TV
        ids_T = torch.where(temperature_T > 0, noisy_TV.argmax(dim=1), ids_T)
    logits_TV[:, avoided_id] = avoided_T
    shift_T = torch.maximum(highest_T, avoided_T)
    logits_TV.sub_(shift_T[:, None])
    own_T1 = logits_TV.gather(1, ids_T[:, None])
    relative_TV = logits_TV.clamp_(min=NEGLIGIBLE)
    weights_TV = relative_TV.exp() if entropy else relative_TV.exp_()
    others_T = weights_TV.scatter_(1, ids_T[:, None], 0.0).sum(dim=1)
    log_odds_T = own_T1[:, 0] - others_T.log()
    total_T = others_T + own_T1[:, 0].exp()
    entropy_T = None
    if entropy:
        weights_TV.scatter_(1, ids_T[:, None], own_T1.exp())
        entropy_T = total_T.log() - (weights_TV * relative_TV).sum(dim=1) / total_T
    return Selection(ids_T, log_odds_T, shift_T + total_T.log(), entropy_T)


def top_tokens(
    logits_TV: Tensor,
    suppressed_S: Tensor,
    suppress_T: Tensor,
    avoided_id: int,
    avoid_T: Tensor,
    count: int,
) -> tuple[Tensor, Tensor]:
    """The `count` likeliest tokens of each row with their probabilities, [T, count] each.

    Rows and probabilities are those of `select_tokens`; the best first, ties to the lower id, and a
    probability of 0 where there is no such token. Leaves the logits as they are.
    """
    columns = logits_TV.shape[1]
    double = logits_TV.dtype == torch.float64
    logits_TV = logits_TV.clone() if double else logits_TV.to(torch.float32, copy=True)
    columns_TS = logits_TV.index_select(1, suppressed_S)
    logits_TV.index_copy_(1, suppressed_S, columns_TS.masked_fill(suppress_T[:, None], -torch.inf))
    total_T1 = logits_TV.logsumexp(dim=1, keepdim=True)
    avoided_T = logits_TV[:, avoided_id]
    logits_TV[:, avoided_id] = avoided_T.masked_fill(avoid_T, -torch.inf)
    best_TK, ids_TK = logits_TV.topk(min(count, columns), dim=1)
    by_id_TK = ids_TK.argsort(dim=1)
    best_TK, ids_TK = best_TK.gather(1, by_id_TK), ids_TK.gather(1, by_id_TK)
    order_TK = best_TK.argsort(dim=1, descending=True, stable=True)
    chance_TK = (best_TK.gather(1, order_TK) - total_T1).exp().double()
    missing = (0, count - chance_TK.shape[1])
    pad = torch.nn.functional.pad
    return pad(ids_TK.gather(1, order_TK), missing), pad(chance_TK, missing)


def _highest(logits_TV: Tensor) -> tuple[Tensor, Tensor]:
    """The highest logit of each row and where it first occurs."""
    columns = logits_TV.shape[1]
    if logits_TV.is_cuda or columns >= 1 << 24:
        return logits_TV.max(dim=1)
    # On a CPU `max` with indices takes one number at a time; these passes are twice as fast.
    highest_T = logits_TV.amax(dim=1)
    rank_V = torch.arange(columns, 0, -1, dtype=logits_TV.dtype, device=logits_TV.device)
    rank_TV = torch.eq(logits_TV, highest_T[:, None], out=torch.empty_like(logits_TV))
    # Not a number equals nothing: such a row gets the last id.
    ids_T = (columns - rank_TV.mul_(rank_V).amax(dim=1)).clamp(max=columns - 1)
    return highest_T, ids_T.long()


def lm_head_select(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    suppressed_S: Tensor,
    suppress_T: Tensor,
    avoided_id: int,
    avoid_T: Tensor,
    *,
    entropy: bool = False,
) -> Selection:
    """`select_tokens` of the LM head's logits, `hidden_TD @ weight_VD.T`, widened to float32."""
    logits_TV = hidden_TD @ weight_VD.T
    if logits_TV.dtype != torch.float64:
        logits_TV = logits_TV.float()
    return select_tokens(logits_TV, suppressed_S, suppress_T, avoided_id, avoid_T, entropy=entropy)


def refine_canvas(
    plan: Plan, canvas: Canvas, predicted_BC: Tensor, score_BC: Tensor, log_odds_BC: Tensor
) -> tuple[Canvas, Written]:
    """One step of every canvas: reveal, revise, look for the stop, move to the next block.

    Reveals the masked positions of highest score, ties to the lower position, as many as the
    block's schedule says and at most as many as there are, and those of log-odds above
    `reveal_above_B`. Predicted stops of log-odds above `end_above_B` are revealed beside them.
    Revises positions of the current block that were not masked when the step began and that no
    template fixes, if the prediction's log-odds are above `edit_above_B`. A finished canvas stays
    as it is.
    """
    position_C = torch.arange(canvas.ids_BC.shape[1], device=canvas.ids_BC.device)
    masked_BC = canvas.ids_BC == plan.mask_id
    running_B1 = ~canvas.done_B[:, None]
    start_B = canvas.block_B * plan.block_length_B
    end_B = start_B + plan.block_length_B
    in_block_BC = (position_C >= start_B[:, None]) & (position_C < end_B[:, None])
    stop_known_B = canvas.stop_B < plan.length_B
    # Officially the block's end does not count once a stop is known.
    bound_B = torch.where(
        plan.official_B & stop_known_B, canvas.stop_B, torch.minimum(canvas.stop_B, end_B)
    )
    open_BC = (position_C < bound_B[:, None]) & running_B1

    candidate_BC = masked_BC & open_BC
    count_B = _scheduled(plan, canvas, (masked_BC & in_block_BC).sum(dim=1))
    sure_BC = log_odds_BC > plan.reveal_above_B[:, None]
    end_BC = (log_odds_BC > plan.end_above_B[:, None]) & _single_stops(plan, predicted_BC)
    others_BC = first_k(score_BC, candidate_BC & ~end_BC, count_B)
    revealed_BC = others_BC | (candidate_BC & (sure_BC | end_BC))

    # Nothing is left to reveal: a step that only refines.
    filled_B = ~plan.official_B & ~(masked_BC & in_block_BC & open_BC).any(dim=1) & ~canvas.done_B
    begun_B = (canvas.step_B >= plan.refine_from_B) | filled_B
    refining_B = plan.refine_B & begun_B
    seen_BC = position_C < canvas.sight_B[:, None]
    known_BC = ~masked_BC & in_block_BC & seen_BC & refining_B[:, None] & running_B1
    known_BC = known_BC & (canvas.rule_BC != FIXED)
    fraction_B = (known_BC.sum(dim=1) * plan.refine_fraction_B).floor()
    part_BC = first_k(score_BC, known_BC & open_BC, fraction_B)
    revised_BC = torch.where(plan.refine_fraction_B[:, None] < 1, part_BC, known_BC)
    hidden_B = (masked_BC & in_block_BC & ~revealed_BC).any(dim=1)
    # Revising the stop away in the last step would leave the masks behind it in the caption.
    last_B = (canvas.step_B + 1 == plan.steps_B) | (filled_B & ~canvas.polish_B)
    kept_B = ~plan.official_B & last_B & stop_known_B & hidden_B
    stop_span_BC = (position_C >= canvas.stop_B[:, None]) & (
        position_C < (canvas.stop_B + plan.stop_span_B)[:, None]
    )
    moving_BC = predicted_BC != canvas.ids_BC
    timid_BC = (
        ~(log_odds_BC > plan.edit_above_B[:, None]) & (plan.edit_above_B > -torch.inf)[:, None]
    )
    held_BC = (stop_span_BC & kept_B[:, None]) | timid_BC
    revised_BC = revised_BC & ~(held_BC & moving_BC)

    ids_BC = torch.where(revealed_BC | revised_BC, predicted_BC, canvas.ids_BC)
    stop_B = torch.where(
        plan.official_B,
        _sticky_stop(plan, ids_BC, canvas.stop_B),
        first_stop(plan, ids_BC).amin(dim=1),
    )
    code_B = fingerprint(ids_BC, plan.length_B)
    seen_before_B = (canvas.seen_BH == code_B[:, None]).any(dim=1)
    slot_H = torch.arange(canvas.seen_BH.shape[1], device=ids_BC.device)
    turn_B = (canvas.step_B + 1) % canvas.seen_BH.shape[1]
    moved = Canvas(
        ids_BC=ids_BC,
        rule_BC=canvas.rule_BC,
        block_B=canvas.block_B,
        step_B=canvas.step_B + 1,
        block_masks_B=canvas.block_masks_B,
        stop_B=torch.where(canvas.done_B, canvas.stop_B, stop_B),
        sight_B=torch.where(canvas.done_B, canvas.sight_B, _sight(plan, canvas.stop_B, stop_B)),
        polish_B=canvas.polish_B,
        refined_B=canvas.refined_B + filled_B,
        seen_BH=torch.where(slot_H == turn_B[:, None], code_B[:, None], canvas.seen_BH),
        forwards_B=canvas.forwards_B + ~canvas.done_B,
        done_B=canvas.done_B,
    )
    leaving_B = _leaves(plan, moved, seen_before_B) & ~canvas.done_B
    return enter_block(plan, moved, leaving_B), Written(revealed_BC, revised_BC, count_B, bound_B)


def enter_block(plan: Plan, canvas: Canvas, leaving_B: Tensor) -> Canvas:
    """Move the canvases of `leaving_B` to their next block that has work, or finish them.

    A block has work if it holds a mask before the stop. By default a block that is complete
    when it is reached, which only a draft makes possible, is refined too, from its first step.
    """
    position_C = torch.arange(canvas.ids_BC.shape[1], device=canvas.ids_BC.device)
    masked_BC = (canvas.ids_BC == plan.mask_id) & (position_C < plan.length_B[:, None])
    before_BC = masked_BC & (position_C < canvas.stop_B[:, None])
    stop_known_B = canvas.stop_B < plan.length_B
    block_BC = (position_C // plan.block_length_B[:, None]).clamp(max=plan.most_blocks - 1)
    empty_BK = masked_BC.new_zeros((len(masked_BC), plan.most_blocks), dtype=torch.int64)
    masks_BK = empty_BK.scatter_add(1, block_BC, masked_BC.long())
    open_BK = empty_BK.scatter_add(1, block_BC, before_BC.long())
    block_K = torch.arange(plan.most_blocks, device=canvas.ids_BC.device)
    reachable_BK = (
        (block_K > canvas.block_B[:, None])
        & (block_K < plan.blocks_B[:, None])
        & (block_K * plan.block_length_B[:, None] < canvas.stop_B[:, None])
    )
    official_BK = (masks_BK > 0) & ~(stop_known_B & ~before_BC.any(dim=1))[:, None]
    default_BK = (open_BK > 0) | plan.refine_B[:, None]
    work_BK = reachable_BK & torch.where(plan.official_B[:, None], official_BK, default_BK)
    next_B = torch.where(work_BK, block_K, plan.most_blocks).amin(dim=1)
    found_B = next_B < plan.most_blocks
    block_B = torch.where(leaving_B & found_B, next_B, canvas.block_B)
    at_B1 = block_B.clamp(min=0)[:, None]
    fresh_BH = torch.full_like(canvas.seen_BH, -1)
    fresh_BH[:, 0] = fingerprint(canvas.ids_BC, plan.length_B)
    return Canvas(
        ids_BC=canvas.ids_BC,
        rule_BC=canvas.rule_BC,
        block_B=block_B,
        step_B=torch.where(leaving_B, 0, canvas.step_B),
        block_masks_B=torch.where(
            leaving_B, masks_BK.gather(1, at_B1).squeeze(1), canvas.block_masks_B
        ),
        stop_B=canvas.stop_B,
        sight_B=canvas.sight_B,
        polish_B=torch.where(leaving_B, open_BK.gather(1, at_B1).squeeze(1) == 0, canvas.polish_B),
        refined_B=torch.where(leaving_B, 0, canvas.refined_B),
        seen_BH=torch.where(leaving_B[:, None], fresh_BH, canvas.seen_BH),
        forwards_B=canvas.forwards_B,
        done_B=canvas.done_B | (leaving_B & ~found_B),
    )


def first_k(score_BC: Tensor, candidate_BC: Tensor, count_B: Tensor) -> Tensor:
    """True at the `count_B` candidates of highest score, ties to the lower position."""
    # A candidate whose score underflowed still goes before what is no candidate.
    floor = torch.finfo(score_BC.dtype).min
    score_BC = score_BC.clamp(min=floor).masked_fill(~candidate_BC, -torch.inf)
    order_BC = score_BC.argsort(dim=1, descending=True, stable=True)
    place_C = torch.arange(score_BC.shape[1], device=score_BC.device)
    rank_BC = torch.empty_like(order_BC).scatter_(1, order_BC, place_C.expand_as(order_BC))
    return (rank_BC < count_B[:, None]) & candidate_BC


def first_stop(plan: Plan, ids_BC: Tensor) -> Tensor:
    """[B, Q]: where each stop sequence first occurs in the answer; its length if nowhere."""
    columns = ids_BC.shape[1]
    longest = plan.stops_BQL.shape[2]
    position_C = torch.arange(columns, device=ids_BC.device)
    padded_BC = torch.nn.functional.pad(ids_BC, (0, longest), value=-1)
    match_BQC = (position_C + plan.stop_lengths_BQ[..., None]) <= plan.length_B[:, None, None]
    match_BQC = match_BQC & (plan.stop_lengths_BQ > 0)[..., None]
    for offset in range(longest):
        token_BQ1 = plan.stops_BQL[:, :, offset, None]
        same_BQC = padded_BC[:, None, offset : offset + columns] == token_BQ1
        match_BQC = match_BQC & (same_BQC | (offset >= plan.stop_lengths_BQ)[..., None])
    return torch.where(match_BQC, position_C, plan.length_B[:, None, None]).amin(dim=2)


def _single_stops(plan: Plan, predicted_BC: Tensor) -> Tensor:
    """Whether a token alone is one of its request's stop sequences, [B, C]."""
    alone_BQ1 = (plan.stop_lengths_BQ == 1)[..., None]
    return ((predicted_BC[:, None] == plan.stops_BQL[:, :, :1]) & alone_BQ1).any(dim=1)


def fingerprint(ids_BC: Tensor, length_B: Tensor) -> Tensor:
    """A number of 63 bits an answer, to find out whether it was there before.

    Columns behind it do not count: they come and go with other requests.
    """
    position_C = torch.arange(ids_BC.shape[1], device=ids_BC.device)
    mixed_BC = noise.derive(ids_BC, position_C).masked_fill(position_C >= length_B[:, None], 0)
    return mixed_BC.sum(dim=1) & torch.iinfo(torch.int64).max


def _scheduled(plan: Plan, canvas: Canvas, masks_B: Tensor) -> Tensor:
    """How many positions this step reveals, [B].

    Officially fixed when the block starts: m masks over s steps, m // s each and one more in the
    first m % s. By default the masks left are spread over the steps left, which is the same
    until a stop that was found is revised away again, but at least `least_B`.
    """
    fixed_B = canvas.block_masks_B // plan.steps_B + (
        canvas.step_B < canvas.block_masks_B % plan.steps_B
    )
    left_B = (plan.steps_B - canvas.step_B).clamp(min=1)
    spread_B = (masks_B + left_B - 1) // left_B
    return torch.where(plan.official_B, fixed_B, torch.maximum(spread_B, plan.least_B))


def _sticky_stop(plan: Plan, ids_BC: Tensor, stop_B: Tensor) -> Tensor:
    """The official stop: it moves to earlier places only, and stays when the stop is gone.

    Sequences are looked for in listed order until a stop is known.
    """
    known_B = torch.zeros_like(stop_B, dtype=torch.bool)
    for found_B in first_stop(plan, ids_BC).unbind(dim=1):
        stop_B = torch.where(known_B, stop_B, torch.minimum(stop_B, found_B))
        known_B = stop_B < plan.length_B
    return stop_B


def _sight(plan: Plan, before_B: Tensor, stop_B: Tensor) -> Tensor:
    """Positions that take part in the next forward pass, [B].

    Of a request that shrinks, only those up to the stop if the step left that where it was.
    """
    settled_B = plan.shrinks_B & (stop_B == before_B)
    kept_B = (stop_B + plan.stop_span_B + SIGHT - 1) // SIGHT * SIGHT
    return torch.where(settled_B, torch.minimum(kept_B, plan.length_B), plan.length_B)


def _leaves(plan: Plan, canvas: Canvas, seen_before_B: Tensor) -> Tensor:
    """Whether the current block is over, [B]."""
    position_C = torch.arange(canvas.ids_BC.shape[1], device=canvas.ids_BC.device)
    masked_BC = canvas.ids_BC == plan.mask_id
    start_B = canvas.block_B * plan.block_length_B
    in_block_BC = (position_C >= start_B[:, None]) & (
        position_C < (start_B + plan.block_length_B)[:, None]
    )
    before_BC = masked_BC & (position_C < canvas.stop_B[:, None])
    extra_B = torch.where(canvas.polish_B, 0, plan.extra_B)
    used_up_B = canvas.step_B >= plan.steps_B + extra_B
    stop_known_B = canvas.stop_B < plan.length_B
    official_B = ~(masked_BC & in_block_BC).any(dim=1) | (stop_known_B & ~before_BC.any(dim=1))
    filled_B = ~(before_BC & in_block_BC).any(dim=1)
    refined_B = (canvas.refined_B >= extra_B) | ((canvas.refined_B > 0) & seen_before_B)
    default_B = filled_B & torch.where(canvas.polish_B, seen_before_B, refined_B)
    return used_up_B | torch.where(plan.official_B, official_B, default_B)

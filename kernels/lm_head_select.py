"""`lm_head_select` in Triton: the LM head and `select_tokens` in one, logits stay in registers.

A program multiplies a tile of rows with a tile of the vocabulary and writes what `partials`
joins: a few numbers a row and tile.

Shape suffixes: T rows, D hidden size, V vocabulary, S suppressed ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels.counter import gumbel
from kernels.partials import Partials, weight
from kernels.select_tokens import check, check_noise

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.reference import Selection

ROWS = 128
"""Rows of a tile at most."""
COLUMNS = 128
GROUP = 16
"""Row tiles that go over the vocabulary together, so that its weights come from the cache."""


def lm_head_select(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    suppressed_S: Tensor,
    suppress_T: Tensor,
    avoided_id: int,
    avoid_T: Tensor,
    temperature_T: Tensor | None = None,
    key_T2: Tensor | None = None,
    *,
    entropy: bool = False,
) -> Selection:
    """`select_tokens` of `hidden_TD @ weight_VD.T`, both of one type of 16 or 32 bits.

    Products are summed in float32 and not rounded to the type of the inputs in between.

    Raises:
        ValueError: a shape or a type that does not fit.
    """
    rows, depth = hidden_TD.shape
    columns = len(weight_VD)
    check(hidden_TD, columns, suppressed_S, (suppress_T, avoid_T), avoided_id)
    check_noise(rows, temperature_T, key_T2)
    if weight_VD.shape[1:] != (depth,) or weight_VD.dtype != hidden_TD.dtype:
        raise ValueError(
            f"hidden rows {hidden_TD.dtype} {hidden_TD.shape} do not fit "
            f"weights {weight_VD.dtype} {weight_VD.shape}"
        )
    if weight_VD.stride(1) != 1:
        raise ValueError(f"a token's weights must lie side by side, got {weight_VD.stride()}")
    tile = min(ROWS, max(16, triton.next_power_of_2(rows)))
    parts = triton.cdiv(columns, COLUMNS)
    noise = temperature_T is not None
    partials = Partials.empty(rows, parts, hidden_TD, entropy=entropy, noise=noise)
    if rows:
        _tile_kernel[(triton.cdiv(rows, tile) * parts,)](
            hidden_TD,
            hidden_TD.stride(0),
            weight_VD,
            weight_VD.stride(0),
            suppressed_S,
            suppress_T,
            avoid_T,
            temperature_T,
            key_T2,
            partials.ids_TP,
            partials.own_TP,
            partials.shift_TP,
            partials.others_TP,
            partials.slope_TP,
            partials.score_TP,
            rows,
            columns,
            depth,
            avoided_id,
            SUPPRESSED=len(suppressed_S),
            ROWS=tile,
            COLUMNS=COLUMNS,
            DEPTH=64 if hidden_TD.dtype != torch.float32 else 32,
            GROUP=GROUP,
            ENTROPY=entropy,
            NOISE=noise,
            num_warps=8 if tile == ROWS else 4,
            num_stages=3,
        )
    return partials.join(columns)


@triton.jit  # type: ignore[untyped-decorator]
def _tile_kernel(
    hidden_ptr: tl.tensor,
    hidden_stride: tl.tensor,
    weight_ptr: tl.tensor,
    weight_stride: tl.tensor,
    suppressed_ptr: tl.tensor,
    suppress_ptr: tl.tensor,
    avoid_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    key_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    own_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    others_ptr: tl.tensor,
    slope_ptr: tl.tensor,
    score_ptr: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    depth: tl.tensor,
    avoided_id: tl.tensor,
    SUPPRESSED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    ENTROPY: tl.constexpr,
    NOISE: tl.constexpr,
) -> None:
    """One tile of rows and ids."""
    low = -float("inf")
    program = tl.program_id(0)
    parts = tl.cdiv(columns, COLUMNS)
    group = program // (GROUP * parts)
    group_rows = tl.minimum(tl.cdiv(rows, ROWS) - group * GROUP, GROUP)
    inner = program % (GROUP * parts)
    part = inner // group_rows
    row = (group * GROUP + inner % group_rows) * ROWS + tl.arange(0, ROWS)
    ids = part * COLUMNS + tl.arange(0, COLUMNS)
    is_row = row < rows
    is_id = ids < columns
    wide_row = row.to(tl.int64)

    hidden_ptr += wide_row[:, None] * hidden_stride
    weight_ptr += ids.to(tl.int64)[None, :] * weight_stride
    logit = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, depth, DEPTH):
        at = start + tl.arange(0, DEPTH)
        hidden = tl.load(
            hidden_ptr + at[None, :], mask=is_row[:, None] & (at < depth)[None, :], other=0.0
        )
        weights = tl.load(
            weight_ptr + at[:, None], mask=(at < depth)[:, None] & is_id[None, :], other=0.0
        )
        logit = tl.dot(hidden, weights, logit, input_precision="ieee")

    suppress = tl.load(suppress_ptr + row, mask=is_row, other=False)
    avoid = tl.load(avoid_ptr + row, mask=is_row, other=False)
    logit = tl.where(is_id[None, :], logit, low)
    for index in tl.static_range(SUPPRESSED):
        suppressed = tl.load(suppressed_ptr + index)
        logit = tl.where(suppress[:, None] & (ids == suppressed)[None, :], low, logit)
    pick = tl.where(avoid[:, None] & (ids == avoided_id)[None, :], low, logit)

    score = pick
    if NOISE:
        temperature = tl.load(temperature_ptr + row, mask=is_row, other=0.0)
        seed = tl.load(key_ptr + 2 * wide_row, mask=is_row, other=0)
        place = tl.load(key_ptr + 2 * wide_row + 1, mask=is_row, other=0)
        pairs = part * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
        score = pick.to(tl.float64)
        noise = gumbel(seed[:, None], place[:, None], pairs[None, :])
        noisy = score + temperature[:, None] * noise
        score = tl.where((temperature > 0)[:, None], noisy, score)
    best_score = tl.max(score, axis=1)
    # Ties go to the lower id. With NaN in a row there may be no best one.
    chosen = tl.min(tl.where(score == best_score[:, None], ids[None, :], columns), axis=1)
    is_chosen = (ids[None, :] == chosen[:, None]) & (pick > low)
    best = tl.max(tl.where(is_chosen, pick, low), axis=1)
    top = tl.max(logit, axis=1)
    # The best token is left out of the sum, not taken off it.
    mass = weight(logit, top[:, None])
    others = tl.sum(tl.where(is_chosen, 0.0, mass), axis=1)
    out = wide_row * parts + part
    tl.store(ids_ptr + out, chosen, mask=is_row)
    tl.store(own_ptr + out, best, mask=is_row)
    tl.store(shift_ptr + out, top, mask=is_row)
    tl.store(others_ptr + out, others, mask=is_row)
    if ENTROPY:
        rise = tl.where(logit == low, 0.0, logit - top[:, None])
        tl.store(slope_ptr + out, tl.sum(mass * rise, axis=1), mask=is_row)
    if NOISE:
        tl.store(score_ptr + out, best_score, mask=is_row)

"""`select_tokens` in Triton: one pass over the logits, no softmax in memory.

A program covers a part of a row, always the same columns, so that the sums of a row do not
depend on the rows beside it. Its lanes keep a running softmax each, without their best token.

Shape suffixes: T rows, V vocabulary, S suppressed ids.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels.counter import gumbel
from kernels.partials import Partials, weight

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.reference import Selection

TILE = 2048
TILES = 8
"""Tiles of a program."""
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
LOG2E = tl.constexpr(math.log2(math.e))
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def select_tokens(
    logits_TV: Tensor,
    suppressed_S: Tensor,
    suppress_T: Tensor,
    avoided_id: int,
    avoid_T: Tensor,
    temperature_T: Tensor | None = None,
    key_T2: Tensor | None = None,
    *,
    entropy: bool = False,
) -> Selection:
    """`reference.select_tokens` for logits of 16 or 32 bits, summed in float32.

    Leaves the logits as they are. `temperature_T` (float64) comes with `key_T2` (int64, of
    `noise.row_keys`): the uniform numbers of a row's ids are `noise.numbers` of its key.

    Raises:
        ValueError: a shape or a type that does not fit.
    """
    rows, columns = logits_TV.shape
    check(logits_TV, columns, suppressed_S, (suppress_T, avoid_T), avoided_id)
    check_noise(rows, temperature_T, key_T2)
    parts = triton.cdiv(columns, TILE * TILES)
    noise = temperature_T is not None
    partials = Partials.empty(rows, parts, logits_TV, entropy=entropy, noise=noise)
    if rows:
        _part_kernel[(rows, parts)](
            logits_TV,
            logits_TV.stride(0),
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
            columns,
            avoided_id,
            SUPPRESSED=len(suppressed_S),
            TILE=TILE,
            TILES=TILES,
            ENTROPY=entropy,
            NOISE=noise,
            # Without noise 16 logits a lane, and four programs a multiprocessor.
            num_warps=8 if noise else 4,
            **({} if noise or torch.version.hip else {"maxnreg": 128}),
        )
    return partials.join(columns)


def check(
    rows_TX: Tensor, columns: int, suppressed_S: Tensor, flags: tuple[Tensor, ...], avoided_id: int
) -> None:
    """Raise ValueError unless rows, suppressed ids, flags of rows and avoided id fit."""
    if rows_TX.dtype not in DTYPES:
        raise ValueError(f"rows must be of one of {DTYPES}, got {rows_TX.dtype}")
    if rows_TX.stride(1) != 1:
        raise ValueError(f"the columns must lie side by side, got strides {rows_TX.stride()}")
    if not 2 <= columns < 2**31:
        raise ValueError(f"the vocabulary must have 2 to 2^31 - 1 ids, got {columns}")
    if suppressed_S.dim() != 1 or suppressed_S.dtype != torch.int64:
        raise ValueError(
            f"suppressed ids must be int64 [S], got {suppressed_S.dtype} {suppressed_S.shape}"
        )
    for flag_T in flags:
        if flag_T.shape != rows_TX.shape[:1] or flag_T.dtype != torch.bool:
            raise ValueError(
                f"{len(rows_TX)} rows need as many bools, got {flag_T.dtype} {flag_T.shape}"
            )
    if not 0 <= avoided_id < columns:
        raise ValueError(f"the avoided id {avoided_id} lies outside the vocabulary {columns}")


def check_noise(rows: int, temperature_T: Tensor | None, key_T2: Tensor | None) -> None:
    """Raise ValueError unless there are both temperatures and keys, or neither."""
    if temperature_T is None and key_T2 is None:
        return
    if temperature_T is None or key_T2 is None:
        raise ValueError("temperature_T and key_T2 go together")
    if temperature_T.shape != (rows,) or temperature_T.dtype != torch.float64:
        raise ValueError(
            f"temperatures must be float64 [{rows}], "
            f"got {temperature_T.dtype} {temperature_T.shape}"
        )
    if key_T2.shape != (rows, 2) or key_T2.dtype != torch.int64 or not key_T2.is_contiguous():
        raise ValueError(
            f"keys must be int64 [{rows}, 2] in one piece, got {key_T2.dtype} {key_T2.shape}"
        )


@triton.jit  # type: ignore[untyped-decorator]
def _part_kernel(
    logits_ptr: tl.tensor,
    stride: tl.tensor,
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
    columns: tl.tensor,
    avoided_id: tl.tensor,
    SUPPRESSED: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    ENTROPY: tl.constexpr,
    NOISE: tl.constexpr,
) -> None:
    """The part `program_id(1)` of the row `program_id(0)`."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * (TILE * TILES)
    low = -float("inf")
    logits_ptr += row * stride
    suppress = tl.load(suppress_ptr + row)
    avoid = tl.load(avoid_ptr + row)
    temperature = 0.0
    seed = row
    place = row
    if NOISE:
        temperature = tl.load(temperature_ptr + row)
        seed = tl.load(key_ptr + 2 * row)
        place = tl.load(key_ptr + 2 * row + 1)

    # The range of the ids that a row may not take: most tiles hold none of them.
    least = tl.where(avoid, avoided_id, columns)
    most = tl.where(avoid, avoided_id, -1)
    for index in tl.static_range(SUPPRESSED):
        suppressed = tl.load(suppressed_ptr + index).to(tl.int32)
        least = tl.where(suppress, tl.minimum(least, suppressed), least)
        most = tl.where(suppress, tl.maximum(most, suppressed), most)

    lane = tl.arange(0, TILE)
    # The tile of a lane's best token, its logit, the highest logit, and sums relative to that
    # without the best token. Without noise a lane begins below all finite logits, at a number from
    # which every difference is one, and what it has summed by its first logit is scaled by 0.
    tiles = tl.zeros((TILE,), tl.int32)
    own = tl.full((TILE,), low if NOISE else LOWEST, tl.float32)
    shift = own
    others = tl.zeros((TILE,), tl.float32)
    slope = others
    score = own.to(tl.float64)
    # Whole tiles go without a mask; what is left of a row is masked and comes last.
    whole = tl.minimum((columns - first) // TILE, TILES)
    for tile in tl.range(0, whole, num_stages=4):
        start = first + tile * TILE
        logit = tl.load(logits_ptr + start + lane).to(tl.float32)
        if (most >= start) & (least < start + TILE):
            logit = _allowed(
                logit, start + lane, suppressed_ptr, suppress, avoided_id, avoid, SUPPRESSED
            )
        if NOISE:
            noise = _noise(temperature, seed, place, start, TILE)
            tiles, own, shift, others, slope, score = _noisy_step(
                logit, noise, tile, tiles, own, shift, others, slope, score, ENTROPY
            )
        else:
            tiles, own, others, slope = _step(logit, tile, tiles, own, others, slope, ENTROPY)
    start = first + whole * TILE
    if (whole < TILES) & (start < columns):
        at = start + lane
        logit = tl.load(logits_ptr + at, mask=at < columns, other=low).to(tl.float32)
        logit = _allowed(logit, at, suppressed_ptr, suppress, avoided_id, avoid, SUPPRESSED)
        if NOISE:
            noise = _noise(temperature, seed, place, start, TILE)
            tiles, own, shift, others, slope, score = _noisy_step(
                logit, noise, whole, tiles, own, shift, others, slope, score, ENTROPY
            )
        else:
            tiles, own, others, slope = _step(logit, whole, tiles, own, others, slope, ENTROPY)

    ids = first + tiles * TILE + lane
    if not NOISE:
        none = own == LOWEST
        own = tl.where(none, low, own)
        others = tl.where(none, 0.0, others)
        shift = own

    avoided = tl.full((), low, tl.float32)
    if avoid & (avoided_id >= first) & (avoided_id < first + TILE * TILES):
        # It cannot be taken but keeps its share, unless it is suppressed as well.
        avoided = tl.load(logits_ptr + avoided_id).to(tl.float32)
        for index in tl.static_range(SUPPRESSED):
            hidden = suppress & (tl.load(suppressed_ptr + index) == avoided_id)
            avoided = tl.where(hidden, low, avoided)

    if not NOISE:
        score = own.to(tl.float64)
    chosen = tl.min(tl.where(score == tl.max(score, axis=0), ids, columns), axis=0)
    best = tl.max(tl.where(ids == chosen, own, low), axis=0)
    top = tl.maximum(tl.max(shift, axis=0), avoided)
    scale = weight(shift, top)
    rest = tl.sum(scale * others + tl.where(ids == chosen, 0.0, weight(own, top)), axis=0)
    out = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(ids_ptr + out, chosen)
    tl.store(own_ptr + out, best)
    tl.store(shift_ptr + out, top)
    tl.store(others_ptr + out, rest + weight(avoided, top))
    if ENTROPY:
        drop = tl.where(shift == low, 0.0, shift - top)
        moment = tl.sum(scale * (slope + drop * (others + weight(own, shift))), axis=0)
        rise = tl.where(avoided == low, 0.0, avoided - top)
        tl.store(slope_ptr + out, moment + weight(avoided, top) * rise)
    if NOISE:
        tl.store(score_ptr + out, tl.max(score, axis=0))


@triton.jit  # type: ignore[untyped-decorator]
def _allowed(
    logit: tl.tensor,
    at: tl.tensor,
    suppressed_ptr: tl.tensor,
    suppress: tl.tensor,
    avoided_id: tl.tensor,
    avoid: tl.tensor,
    SUPPRESSED: tl.constexpr,
) -> tl.tensor:
    """Logits of the ids `at`, -inf for those that the row may not take."""
    low = -float("inf")
    for index in tl.static_range(SUPPRESSED):
        suppressed = tl.load(suppressed_ptr + index).to(tl.int32)
        logit = tl.where(suppress & (at == suppressed), low, logit)
    return tl.where(avoid & (at == avoided_id), low, logit)


@triton.jit  # type: ignore[untyped-decorator]
def _step(
    logit: tl.tensor,
    tile: tl.tensor,
    tiles: tl.tensor,
    own: tl.tensor,
    others: tl.tensor,
    slope: tl.tensor,
    ENTROPY: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Lanes after one logit more each. As few operations as can be: they bound the kernel.

    The best token is the highest: one exp serves the sums, whichever of the two is less. NaN
    counts as higher, and stays in the sums.
    """
    keep = logit <= own
    rise = logit - own
    less = tl.exp2(tl.abs(rise) * -LOG2E)
    if ENTROPY:
        # Of what is negligible the difference may be infinite.
        rise = tl.where(less == 0, 0.0, rise)
        slope = tl.where(keep, slope + less * rise, less * (slope - rise * (others + 1)))
    others = tl.where(keep, 1.0, less) * others + less
    return tl.where(keep, tiles, tile), tl.where(keep, own, logit), others, slope


@triton.jit  # type: ignore[untyped-decorator]
def _noise(
    temperature: tl.tensor,
    seed: tl.tensor,
    place: tl.tensor,
    start: tl.tensor,
    TILE: tl.constexpr,
) -> tl.tensor:
    """What the temperature adds to the logits of a tile, float64."""
    noise = tl.zeros((TILE,), tl.float64)
    if temperature > 0:
        noise = temperature * gumbel(seed, place, start // 2 + tl.arange(0, TILE // 2))
    return noise


@triton.jit  # type: ignore[untyped-decorator]
def _noisy_step(
    logit: tl.tensor,
    noise: tl.tensor,
    tile: tl.tensor,
    tiles: tl.tensor,
    own: tl.tensor,
    shift: tl.tensor,
    others: tl.tensor,
    slope: tl.tensor,
    score: tl.tensor,
    ENTROPY: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """The same where the best token need not be the highest."""
    low = -float("inf")
    noisy = logit.to(tl.float64) + noise
    take = noisy > score
    beaten = tl.where(take, own, logit)
    top = tl.maximum(shift, logit)
    scale = weight(shift, top)
    if ENTROPY:
        drop = tl.where(shift == low, 0.0, shift - top)
        slope = scale * (slope + drop * (others + weight(own, shift)))
        rise = tl.where(logit == low, 0.0, logit - top)
        slope += weight(logit, top) * rise
    others = scale * others + weight(beaten, top)
    own = tl.where(take, logit, own)
    score = tl.where(take, noisy, score)
    return tl.where(take, tile, tiles), own, top, others, slope, score

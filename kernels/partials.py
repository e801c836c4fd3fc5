"""What programs over parts of a row know of the distribution, and the kernel that joins them.

Shape suffixes: T rows, P parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels.reference import NEGLIGIBLE, Selection

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = tl.constexpr(2.0 ** (NEGLIGIBLE * 1.4426950408889634))


@dataclass(frozen=True, slots=True)
class Partials:
    """One entry a row and part. A part's best token is the best that may be taken."""

    ids_TP: Tensor
    own_TP: Tensor
    """Logit of the best token."""
    shift_TP: Tensor
    """The highest logit, whether it may be taken or not."""
    others_TP: Tensor
    """Sum of exp(logit - shift) without the best token."""
    slope_TP: Tensor | None
    """Sum of exp(logit - shift) * (logit - shift) with the best token; for the entropy."""
    score_TP: Tensor | None
    """Float64 logit with noise of the best token; None without noise."""

    @classmethod
    def empty(cls, rows: int, parts: int, like: Tensor, *, entropy: bool, noise: bool) -> Partials:
        """Unwritten entries on the device of `like`."""

        def entries(dtype: torch.dtype) -> Tensor:
            return torch.empty((rows, parts), dtype=dtype, device=like.device)

        return cls(
            ids_TP=entries(torch.int32),
            own_TP=entries(torch.float32),
            shift_TP=entries(torch.float32),
            others_TP=entries(torch.float32),
            slope_TP=entries(torch.float32) if entropy else None,
            score_TP=entries(torch.float64) if noise else None,
        )

    def join(self, columns: int) -> Selection:
        """The selection of each row of `columns` logits."""
        rows, parts = self.ids_TP.shape
        like_T = self.own_TP[:, 0]
        chosen = Selection(
            ids_T=torch.empty_like(like_T, dtype=torch.int64),
            log_odds_T=torch.empty_like(like_T),
            logsumexp_T=torch.empty_like(like_T),
            entropy_T=None if self.slope_TP is None else torch.empty_like(like_T),
        )
        if rows:
            _join_kernel[(rows,)](
                self.ids_TP,
                self.own_TP,
                self.shift_TP,
                self.others_TP,
                self.slope_TP,
                self.score_TP,
                chosen.ids_T,
                chosen.log_odds_T,
                chosen.logsumexp_T,
                chosen.entropy_T,
                parts,
                columns,
                BLOCK=triton.next_power_of_2(parts),
                ENTROPY=self.slope_TP is not None,
                NOISE=self.score_TP is not None,
            )
        return chosen


@triton.jit  # type: ignore[untyped-decorator]
def weight(logit: tl.tensor, shift: tl.tensor) -> tl.tensor:
    """exp(logit - shift); 0 at -inf also where the shift is -inf. NaN stays."""
    return tl.where(logit == -float("inf"), 0.0, tl.exp(logit - shift))


@triton.jit  # type: ignore[untyped-decorator]
def _join_kernel(
    ids_ptr: tl.tensor,
    own_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    others_ptr: tl.tensor,
    slope_ptr: tl.tensor,
    score_ptr: tl.tensor,
    chosen_ptr: tl.tensor,
    log_odds_ptr: tl.tensor,
    logsumexp_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    parts: tl.tensor,
    columns: tl.tensor,
    BLOCK: tl.constexpr,
    ENTROPY: tl.constexpr,
    NOISE: tl.constexpr,
) -> None:
    """One row a program."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, BLOCK)
    inside = part < parts
    at = row * parts + part
    low = -float("inf")
    ids = tl.load(ids_ptr + at, mask=inside, other=columns)
    own = tl.load(own_ptr + at, mask=inside, other=low)
    shift = tl.load(shift_ptr + at, mask=inside, other=low)
    others = tl.load(others_ptr + at, mask=inside, other=0.0)
    score = own
    if NOISE:
        score = tl.load(score_ptr + at, mask=inside, other=low)
    # Ties go to the lower id. With NaN among the scores there may be no best one.
    chosen = tl.min(tl.where(score == tl.max(score, axis=0), ids, columns), axis=0)
    best = tl.max(tl.where(ids == chosen, own, low), axis=0)
    top = tl.max(shift, axis=0)
    scale = weight(shift, top)
    beaten = tl.where(ids == chosen, 0.0, weight(own, top))
    rest = tl.sum(scale * others + beaten, axis=0)
    # The floor of the reference, in one term: it bounds the log-odds of a certain token.
    rest += (columns - 1) * FLOOR
    # Not `weight`: a row without any token has no distribution, and says so by NaN.
    total = rest + tl.exp(best - top)
    tl.store(chosen_ptr + row, tl.minimum(chosen, columns - 1).to(tl.int64))
    tl.store(log_odds_ptr + row, best - top - tl.log(rest))
    tl.store(logsumexp_ptr + row, top + tl.log(total))
    if ENTROPY:
        slope = tl.load(slope_ptr + at, mask=inside, other=0.0)
        drop = tl.where(shift == low, 0.0, shift - top)
        mass = others + weight(own, shift)
        moment = tl.sum(scale * (slope + drop * mass), axis=0)
        tl.store(entropy_ptr + row, tl.log(total) - moment / total)

"""The operations that the sampler calls: Triton on a GPU, plain torch elsewhere.

Triton is loaded by the first operation that needs it, not before. Float64 and given uniform
numbers, which only comparisons with the reference use, stay in torch.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import torch

from kernels import reference
from kernels.noise import derive, numbers, row_keys, uniform
from kernels.reference import Selection, enter_block, first_stop, top_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.canvas import Canvas, Plan, Written

__all__ = [
    "Selection",
    "backend",
    "derive",
    "enter_block",
    "first_stop",
    "lm_head_select",
    "numbers",
    "refine_canvas",
    "row_keys",
    "select_tokens",
    "top_tokens",
    "uniform",
]


@cache
def backend() -> Literal["triton", "torch"]:
    """What runs the kernels of this process; found out once."""
    found = torch.cuda.is_available() and find_spec("triton") is not None
    return "triton" if found else "torch"


def select_tokens(
    logits_TV: Tensor,
    suppressed_S: Tensor,
    suppress_T: Tensor,
    avoided_id: int,
    avoid_T: Tensor,
    temperature_T: Tensor | None = None,
    uniform_TV: Tensor | None = None,
    key_T2: Tensor | None = None,
    *,
    entropy: bool = False,
) -> Selection:
    """`reference.select_tokens`. May overwrite the logits.

    Half-precision logits are compared and summed in float32, by a kernel without a copy of them.
    A temperature comes with uniform numbers, or with keys that they follow from (`noise.numbers`),
    which a kernel turns into numbers where it needs them.
    """
    if uniform_TV is None and _fast(logits_TV):
        from kernels.select_tokens import select_tokens as launch

        return launch(
            logits_TV,
            suppressed_S,
            suppress_T,
            avoided_id,
            avoid_T,
            temperature_T,
            key_T2,
            entropy=entropy,
        )
    if uniform_TV is None and key_T2 is not None:
        uniform_TV = numbers(key_T2, logits_TV.shape[1])
    if logits_TV.dtype != torch.float64:
        logits_TV = logits_TV.float()
    return reference.select_tokens(
        logits_TV,
        suppressed_S,
        suppress_T,
        avoided_id,
        avoid_T,
        temperature_T,
        uniform_TV,
        entropy=entropy,
    )


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
    """`reference.lm_head_select`; in Triton without logits in memory."""
    arguments = (hidden_TD, weight_VD, suppressed_S, suppress_T, avoided_id, avoid_T)
    if _fast(hidden_TD):
        from kernels.lm_head_select import lm_head_select as launch

        return launch(*arguments, entropy=entropy)
    return reference.lm_head_select(*arguments, entropy=entropy)


def refine_canvas(
    plan: Plan, canvas: Canvas, predicted_BC: Tensor, score_BC: Tensor, log_odds_BC: Tensor
) -> tuple[Canvas, Written]:
    """`reference.refine_canvas`."""
    if canvas.ids_BC.is_cuda and backend() == "triton":
        from kernels.refine_canvas import refine_canvas as launch

        return launch(plan, canvas, predicted_BC, score_BC, log_odds_BC)
    return reference.refine_canvas(plan, canvas, predicted_BC, score_BC, log_odds_BC)


def _fast(rows_TX: Tensor) -> bool:
    """Whether a kernel takes these rows."""
    return rows_TX.is_cuda and rows_TX.dtype != torch.float64 and backend() == "triton"

"""The operations that the sampler calls. One implementation each today: plain torch."""

from kernels.noise import derive, uniform
from kernels.reference import Selection, enter_block, first_stop, refine_canvas, select_tokens

__all__ = [
    "Selection",
    "derive",
    "enter_block",
    "first_stop",
    "refine_canvas",
    "select_tokens",
    "uniform",
]

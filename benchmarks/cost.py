"""What a step costs by arithmetic: operations and bytes, and what the machine can do.

A multiplication and an addition are two operations. Norms, rotations and softmax are left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rediff_model.config import LanguageConfig


@dataclass(frozen=True, slots=True)
class Cost:
    """Operations, and bytes read and written at least."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def forward(
    config: LanguageConfig, rows: int, context: float, *, head_rows: int, itemsize: int
) -> Cost:
    """`rows` through all layers, each attending to `context` rows, and `head_rows` to logits.

    Bytes are those of the weights, of keys and values (written for each row; read once for a
    sequence, whose rows are taken to be `context` at most) and of the logits.
    """
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    shared = config.num_key_value_heads * config.head_dim
    weights = layers * (2 * hidden * hidden + 2 * hidden * shared + 3 * hidden * inner)
    head = hidden * config.vocab_size
    attention = 2 * 2 * rows * context * hidden * layers
    flops = 2.0 * rows * weights + attention + 2.0 * head_rows * head
    cached = 2 * layers * shared * (rows + context)
    moved = weights + (head if head_rows else 0) + cached + head_rows * config.vocab_size
    return Cost(flops, float(moved * itemsize))


def engine_step(
    config: LanguageConfig, prompt: float, canvas: int, running: float, itemsize: int
) -> Cost:
    """A step of canvases whose prompts are cached (prefix attention)."""
    rows = round(running * canvas)
    step = forward(config, rows, prompt + canvas, head_rows=rows, itemsize=itemsize)
    others = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return step + Cost(0.0, (running - 1) * others * (prompt + canvas) * itemsize)


def reference_step(config: LanguageConfig, prompt: float, canvas: int, itemsize: int) -> Cost:
    """A step of the reference: prompt and canvas again, and logits for every row."""
    rows = round(prompt + canvas)
    return forward(config, rows, rows, head_rows=rows, itemsize=itemsize)


def matmul_flops_per_second(dtype: torch.dtype, rows: int, config: LanguageConfig) -> float:
    """The best of several products of the MLP's shape on this machine, in operations a second
    of processor time."""
    inner, hidden = config.intermediate_size, config.hidden_size
    left, right = torch.randn(rows, hidden, dtype=dtype), torch.randn(hidden, inner, dtype=dtype)
    best = float("inf")
    for _ in range(30):
        began = time.process_time()
        left @ right
        best = min(best, time.process_time() - began)
    return 2.0 * rows * inner * hidden / best

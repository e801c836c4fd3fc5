"""Attention layouts over packed rows, and the cache of a prompt's keys and values.

Shape suffixes: B sequences, L rows of a sequence, P prompt rows, C canvas rows, T packed rows,
H query heads, K key/value heads, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 1 << 20
"""Scores of a sequence up to which plain products are faster than the fused attention on a CPU."""


@dataclass(slots=True)
class DenseAttend:
    """B sequences of L rows each; every row attends to all rows of its own sequence.

    `allowed_BL` (true = may be attended to) hides padding. With `record`, the rotated keys and
    values of every layer are kept, [B, K, L, E], so that a canvas can attend to them later.
    """

    sequences: int
    allowed_BL: Tensor | None = None
    record: bool = False
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def __call__(self, layer: int, query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor) -> Tensor:
        query, key, value = (
            _split(rows, self.sequences) for rows in (query_THE, key_TKE, value_TKE)
        )
        if self.record:
            self.keys.append(key)
            self.values.append(value)
        mask = None if self.allowed_BL is None else self.allowed_BL[:, None, None, :]
        return _attend(query, key, value, mask)


@dataclass(slots=True)
class PrefixAttend:
    """B canvases of C rows each attending to their prompt's cached rows and to themselves.

    `keys` and `values` hold a tensor a layer, [B, K, P, E]; `allowed_BL` over prompt and canvas
    rows (true = may be attended to) hides the padding of shorter ones.
    """

    keys: list[Tensor]
    values: list[Tensor]
    allowed_BL: Tensor | None = None

    def __call__(self, layer: int, query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor) -> Tensor:
        sequences = self.keys[layer].shape[0]
        query, key, value = (_split(rows, sequences) for rows in (query_THE, key_TKE, value_TKE))
        mask = None if self.allowed_BL is None else self.allowed_BL[:, None, None, :]
        return _attend(
            query,
            torch.cat((self.keys[layer], key), dim=2),
            torch.cat((self.values[layer], value), dim=2),
            mask,
        )


def attend(
    query_THE: Tensor, key: Tensor, value: Tensor, bias_GN: Tensor | None, bounded: bool
) -> Tensor:
    """Rows of as many sequences as `key` [G, N, K, E] has, to packed rows [T, H, E].

    `bias_GN` is added to the scores. `bounded` promises that no score is large.
    """
    sequences, count, groups, _ = key.shape
    query = query_THE.view(sequences, -1, *query_THE.shape[1:])
    small = query.shape[1] * query.shape[2] * count <= SMALL
    plain = query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64)
    if small and plain and query.shape[2] == groups:
        return _attend_small(query, key, value, bias_GN, bounded)
    output = scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=None if bias_GN is None else bias_GN[:, None, None, :],
        enable_gqa=query.shape[2] != groups,
    )
    return output.transpose(1, 2).flatten(0, 1)


def _attend_small(
    query: Tensor, key: Tensor, value: Tensor, bias_GN: Tensor | None, bounded: bool
) -> Tensor:
    """`attend`, one sequence after the other: its scores stay in the processor's cache."""
    sequences, rows, heads, size = query.shape
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    scores = query.new_empty((heads, key.shape[1], rows))
    mixed = query.new_empty((heads, rows, size))
    for number in range(sequences):
        # Keys by queries: the product is faster that way round, and so is the sum.
        across = query[number].permute(1, 2, 0)
        torch.baddbmm(
            scores, key[number].transpose(0, 1), across, beta=0, alpha=size**-0.5, out=scores
        )
        if bias_GN is not None:
            scores += bias_GN[number, :, None]
        if not bounded:
            scores -= scores.amax(dim=1, keepdim=True)
        total = scores.exp_().sum(dim=1)
        torch.bmm(scores.transpose(1, 2), value[number].transpose(0, 1), out=mixed)
        # Dividing behind the product divides fewer numbers.
        torch.div(mixed.transpose(0, 1), total.T[:, :, None], out=output[number])
    return output.flatten(0, 1)


def _split(rows: Tensor, sequences: int) -> Tensor:
    """[T, heads, E] to [B, heads, L, E]."""
    return rows.view(sequences, -1, *rows.shape[1:]).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention back to packed rows, [T, H, E].

    On CPU it runs in float32 at least: bfloat16 attention with its backward pass measured three
    times slower there.
    """
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return _attend(query.float(), key.float(), value.float(), mask)
    grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)
    return output.transpose(1, 2).flatten(0, 1)

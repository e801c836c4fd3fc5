"""Attention over buffers in place, without padding: `torch.nn.attention.varlen` on a GPU.

Each sequence names its first key in the flat buffer and how many follow, so nothing is copied and
no mask is read.

Shape suffixes: S sequences, T packed query rows, N rows of a buffer, H query heads, K key/value
heads, E head size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

TOLERANCE = 0.02
"""By which half-precision outputs of about unit size may differ from the fused attention's."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Which keys the queries of each sequence see; int32, on the device."""

    query_ends_S: Tensor
    """[S + 1]: the queries of sequence s are rows ends[s] to ends[s + 1]."""
    first_keys_S: Tensor
    """[S + 1]: its first key's row in the flat buffer; the last entry is the buffer's length."""
    keys_S: Tensor
    """[S]: how many rows from there on it sees."""
    most_queries: int
    most_keys: int


def packed_attend(query_THE: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Tensor:
    """[T, H, E] from packed queries and whole buffers [S', N, K, E] of any number of sequences."""
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query_THE.contiguous(),
        key.flatten(0, 1),
        value.flatten(0, 1),
        spans.query_ends_S,
        spans.first_keys_S,
        spans.most_queries,
        spans.most_keys,
        enable_gqa=query_THE.shape[1] != key.shape[2],
        seqused_k=spans.keys_S,
    )
    assert isinstance(output, torch.Tensor)
    return output


def runs_packed(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether attention of this kind can run packed here; asked once, by a small example."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return _agrees(device, dtype, head_dim)


@cache
def _agrees(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `varlen_attn` knows `seqused_k` and says what the fused attention says."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(3, 24, 2, head_dim, generator=generator) for _ in range(3)]
    queries, key, value = (rows.to(device, dtype) for rows in drawn)
    first, counts, queried = (4, 6, 2), (9, 18, 1), 8
    spans = Spans(
        torch.tensor([0, queried, 2 * queried, 3 * queried], dtype=torch.int32, device=device),
        torch.tensor(
            [24 * s + row for s, row in enumerate(first)] + [72], dtype=torch.int32, device=device
        ),
        torch.tensor(counts, dtype=torch.int32, device=device),
        queried,
        max(counts),
    )
    try:
        got = packed_attend(queries[:, :queried].flatten(0, 1), key, value, spans)
    # An older torch does not know the argument; another GPU not the kernel.
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        logger.info("packed attention is not available: %s", error)
        return False
    for s, (row, count) in enumerate(zip(first, counts, strict=True)):
        want = scaled_dot_product_attention(
            queries[s : s + 1, :queried].transpose(1, 2),
            key[s : s + 1, row : row + count].transpose(1, 2),
            value[s : s + 1, row : row + count].transpose(1, 2),
        )
        found = got[s * queried : (s + 1) * queried]
        if not torch.allclose(found, want[0].transpose(0, 1), rtol=TOLERANCE, atol=TOLERANCE):
            logger.warning("packed attention differs from the fused one on %s: not used", device)
            return False
    return True

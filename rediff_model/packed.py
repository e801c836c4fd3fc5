"""Attention over buffers in place, without padding: `torch.nn.attention.varlen` on a GPU.

Each sequence names its first key in the flat buffer and how many follow, so nothing is copied and
no mask is read. The kernel wants keys without gaps: what lies between two sequences is one more,
with no query.

Shape suffixes: S sequences, W = 2 S - 1 with the gaps between them, T packed query rows, N rows
of a buffer, H query heads, K key/value heads, E head size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any

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

    first_keys_S: Tensor
    """The row of a sequence's first key in the flat buffer, ascending."""
    keys_S: Tensor
    """How many rows from there on it sees."""
    queries: int
    """Of each sequence."""
    most_keys: int
    query_edges_W: Tensor
    """[W + 1]: where the queries of sequences and gaps begin, and where the last ones end."""
    key_edges_W: Tensor
    """[W + 1]: the same of the keys."""

    @classmethod
    def of(cls, first_keys_S: Tensor, keys_S: Tensor, queries: int, most_keys: int) -> Spans:
        """With edges. No sequence may reach into the next one."""
        count = len(keys_S)
        at_S = torch.arange(count, dtype=torch.int32, device=keys_S.device) * queries
        query_edges = torch.stack((at_S, at_S + queries), dim=1).flatten()
        key_edges = torch.stack((first_keys_S, first_keys_S + keys_S), dim=1).flatten()
        return cls(first_keys_S, keys_S, queries, most_keys, query_edges, key_edges.int())


def packed_attend(query_THE: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Tensor:
    """[T, H, E] from packed queries and whole buffers [S', N, K, E] of any number of sequences."""
    from torch.nn.attention.varlen import varlen_attn

    # An older torch takes fewer key than query heads without a word.
    grouped = query_THE.shape[1] != key.shape[2] and _says_grouped()
    options: dict[str, Any] = {"enable_gqa": True} if grouped else {}
    output = varlen_attn(
        query_THE.contiguous(),
        key.flatten(0, 1),
        value.flatten(0, 1),
        spans.query_edges_W,
        spans.key_edges_W,
        spans.queries,
        spans.most_keys,
        **options,
    )
    assert isinstance(output, torch.Tensor)
    return output


@cache
def _says_grouped() -> bool:
    """Whether this torch wants to be told of fewer key heads."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in signature(varlen_attn).parameters


def runs_packed(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether attention of this kind can run packed here; asked once, by a small example."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return _agrees(device, dtype, head_dim)


@cache
def _agrees(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `varlen_attn` skips gaps and says what the fused attention says."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(3, 24, 2, head_dim, generator=generator) for _ in range(3)]
    queries, key, value = (rows.to(device, dtype) for rows in drawn)
    first, counts, queried = (4, 6, 2), (9, 18, 1), 8
    begins = [24 * s + row for s, row in enumerate(first)]
    begin_S, count_S = (
        torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in (begins, counts)
    )
    spans = Spans.of(begin_S, count_S, queried, max(counts))
    try:
        got = packed_attend(queries[:, :queried].flatten(0, 1), key, value, spans)
    # Not every torch has the function, nor every GPU the kernel.
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

"""A plain function in the place of the attention kernel that only GPUs have."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from rediff_model.runtime import varlen

if TYPE_CHECKING:
    import pytest
    from torch import Tensor


def run_packed(patch: pytest.MonkeyPatch) -> list[int]:
    """From here on attention runs packed; the list tells the sequences of every call."""
    made: list[int] = []

    def counted(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        made.append(len(cu_seq_q) // 2)
        return plain_varlen(query, key, value, cu_seq_q, *args, **options)

    patch.setattr("torch.nn.attention.varlen.varlen_attn", counted)
    patch.setattr(varlen, "_says_grouped", lambda: True)
    patch.setattr(varlen, "one_by_one", lambda _: False)
    return made


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.attention.varlen.varlen_attn`, a sequence at a time."""
    assert len(cu_seq_q) == len(cu_seq_k)
    assert {cu_seq_q.dtype, cu_seq_k.dtype} == {torch.int32}
    assert enable_gqa == (query.shape[1] != key.shape[1])
    queries, keys = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert keys == sorted(keys), "a sequence reads into the next one"
    assert keys[-1] <= len(key)
    output = torch.full_like(query, torch.nan)
    for (first, last), (begin, end) in zip(pairwise(queries), pairwise(keys), strict=True):
        if first == last:
            continue
        assert last - first <= max_q
        assert end - begin <= max_k
        seen = scaled_dot_product_attention(
            query[None, first:last].transpose(1, 2),
            key[None, begin:end].transpose(1, 2),
            value[None, begin:end].transpose(1, 2),
            enable_gqa=enable_gqa,
        )
        output[first:last] = seen[0].transpose(0, 1)
    return output

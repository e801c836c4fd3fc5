"""Attention over sequences of a bucket is the fused one, whichever way it runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rediff_model.runtime import attention
from rediff_model.runtime.attention import attend


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("key_heads", "small"), [(4, 1 << 20), (4, 0), (2, 1 << 20)])
def test_equals_the_fused_attention(
    key_heads: int, small: int, padded: bool, bounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SMALL", small)
    torch.manual_seed(0)
    query_THE = torch.randn(10, 4, 6, dtype=torch.float64)
    # Scores without a bound are so large that exp of them is infinite.
    key_GNKE = torch.randn(2, 7, key_heads, 6, dtype=torch.float64) * (1 if bounded else 1000)
    value_GNKE = torch.randn(2, 7, key_heads, 6, dtype=torch.float64)
    bias_GN = torch.zeros(2, 7, dtype=torch.float64)
    bias_GN[1, 5:] = -torch.inf
    want = scaled_dot_product_attention(
        query_THE.view(2, 5, 4, 6).transpose(1, 2),
        key_GNKE.transpose(1, 2),
        value_GNKE.transpose(1, 2),
        attn_mask=bias_GN[:, None, None] if padded else None,
        enable_gqa=True,
    )
    got_THE = attend(query_THE, key_GNKE, value_GNKE, bias_GN if padded else None, bounded)
    torch.testing.assert_close(got_THE, want.transpose(1, 2).flatten(0, 1), rtol=1e-11, atol=1e-11)

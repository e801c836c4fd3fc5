"""Attention in place over the buffers, and the tokens that come of it.

Where there is no GPU, a plain function of the same signature stands in for the kernel.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rediff_model import buckets, packed, reference
from rediff_model.config import LanguageConfig, PrefixAttention
from rediff_model.language import LanguageModel
from rediff_model.sampler import generate, join, open_state, step
from rediff_model.settings import SamplerSettings, TokenIds

if TYPE_CHECKING:
    from torch import Tensor

IDS = TokenIds(mask=95, suppressed=(94, 93), stop=92)


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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequences of every call of the stand-in."""
    made: list[int] = []

    def counted(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        made.append(len(cu_seq_q) // 2)
        return plain_varlen(query, key, value, cu_seq_q, *args, **options)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", counted)
    monkeypatch.setattr(packed, "_says_grouped", lambda: True)
    monkeypatch.setattr(buckets, "runs_packed", lambda *_: True)
    return made


def model_of(prefix_attention: PrefixAttention) -> LanguageModel:
    torch.manual_seed(0)
    config = LanguageConfig(96, 32, 64, 2, 4, 2, prefix_attention=prefix_attention)
    return LanguageModel(config).double().eval()


@pytest.mark.parametrize("prefix_attention", ["full", "prefix"])
def test_canvases_of_one_length_run_packed_and_say_what_the_reference_says(
    prefix_attention: PrefixAttention, calls: list[int]
) -> None:
    model = model_of(prefix_attention)
    prompts = [torch.randn(rows, 32, dtype=torch.float64) for rows in (5, 9, 5, 12, 30)]
    settings = [SamplerSettings(canvas_length=16, tokens_per_step=k) for k in (1, 4, 2, 4, 8)]
    expected = [
        reference.generate(model, prompt, one, IDS).canvas
        for prompt, one in zip(prompts, settings, strict=True)
    ]
    found = generate(model, prompts, settings, IDS)
    assert [made.canvas for made in found] == expected
    assert calls


@pytest.mark.parametrize("prefix_attention", ["full", "prefix"])
def test_requests_that_join_and_leave_keep_their_own_rows(
    prefix_attention: PrefixAttention, calls: list[int]
) -> None:
    model = model_of(prefix_attention)
    prompts = [torch.randn(rows, 32, dtype=torch.float64) for rows in (5, 7, 6, 8)]
    settings = [SamplerSettings(canvas_length=16, tokens_per_step=k) for k in (8, 2, 4, 2)]
    state = join(model, open_state(model, IDS), (0, 1), prompts[:2], settings[:2])
    state, _ = step(model, state)
    state = join(model, state, (2, 3), prompts[2:], settings[2:])
    while state.slots is not None:
        state, _ = step(model, state)
    for number, (prompt, one) in enumerate(zip(prompts, settings, strict=True)):
        made = reference.generate(model, prompt, one, IDS)
        assert state.finished[number].canvas == made.canvas
    assert {1, 2} <= set(calls)


def test_a_prompt_that_is_refreshed_less_often_runs_alone(calls: list[int]) -> None:
    model = model_of("full")
    prompts = [torch.randn(rows, 32, dtype=torch.float64) for rows in (5, 6)]
    settings = [SamplerSettings(canvas_length=16, tokens_per_step=2)] * 2
    packed_ids = [
        one.ids for one in generate(model, prompts, settings, IDS, prompt_refresh_interval=3)
    ]
    assert calls
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "runs_packed", lambda *_: False)
        made = generate(model, prompts, settings, IDS, prompt_refresh_interval=3)
    assert packed_ids == [one.ids for one in made]


def test_canvases_of_several_lengths_share_a_bucket_without_it(calls: list[int]) -> None:
    model = model_of("prefix")
    prompts = [torch.randn(5, 32, dtype=torch.float64) for _ in range(2)]
    settings = [SamplerSettings(canvas_length=length, tokens_per_step=4) for length in (15, 16)]
    found = generate(model, prompts, settings, IDS)
    for prompt, one, made in zip(prompts, settings, found, strict=True):
        assert made.canvas == reference.generate(model, prompt, one, IDS).canvas


def test_a_processor_runs_buckets() -> None:
    assert not packed.runs_packed(torch.device("cpu"), torch.bfloat16, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_says_what_the_fused_attention_says(dtype: torch.dtype) -> None:
    assert packed.runs_packed(torch.device("cuda", 0), dtype, 128)

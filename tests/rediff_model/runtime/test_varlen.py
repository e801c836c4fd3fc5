"""Attention in place over the buffers, and the tokens that come of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from varlen_case import run_packed

from rediff_model.config import LanguageConfig, PrefixAttention, TokenIds
from rediff_model.language import LanguageModel
from rediff_model.runtime import padded, varlen
from rediff_model.runtime.cpu_decoder import LeanDecoder
from rediff_model.sampling import reference
from rediff_model.sampling.params import SamplerSettings
from rediff_model.sampling.sampler import generate, join, open_state, step

if TYPE_CHECKING:
    from torch import Tensor

IDS = TokenIds(mask=95, suppressed=(94, 93), stop=92)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequences of every call of the stand-in."""
    return run_packed(monkeypatch)


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
        patch.setattr(padded, "lies_packed", lambda _: False)
        made = generate(model, prompts, settings, IDS, prompt_refresh_interval=3)
    assert packed_ids == [one.ids for one in made]


@pytest.mark.parametrize("prefix_attention", ["full", "prefix"])
def test_nothing_is_padded_where_lengths_differ(
    prefix_attention: PrefixAttention, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(prefix_attention)
    passes: list[int] = []
    forward = LeanDecoder.__call__

    def count(decoder: LeanDecoder, hidden_TD: Tensor, *rest: Any) -> Tensor:
        passes.append(len(hidden_TD))
        return forward(decoder, hidden_TD, *rest)

    monkeypatch.setattr(LeanDecoder, "__call__", count)
    prompts = [torch.randn(rows, 32, dtype=torch.float64) for rows in (5, 7, 6)]
    settings = [SamplerSettings(canvas_length=rows, tokens_per_step=4) for rows in (13, 16, 15)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = generate(model, prompts, settings, IDS)
    torch.set_num_threads(threads)
    first = [18, 44] if prefix_attention == "prefix" else [62]
    assert passes[: len(first)] == first
    assert calls
    for prompt, one, made in zip(prompts, settings, found, strict=True):
        assert made.canvas == reference.generate(model, prompt, one, IDS).canvas


def test_a_processor_has_no_such_kernel() -> None:
    assert not varlen.runs_packed(torch.device("cpu"), torch.bfloat16, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_says_what_the_fused_attention_says(dtype: torch.dtype) -> None:
    assert varlen.runs_packed(torch.device("cuda", 0), dtype, 128)

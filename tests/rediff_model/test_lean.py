"""The lean decoder is the decoder."""

from __future__ import annotations

import pytest
import torch
from sampler_case import IDS, assert_equal, model_of, prompt_of

from rediff_model import context, reference, sampler
from rediff_model.cache import DenseAttend
from rediff_model.config import LanguageConfig, PrefixAttention
from rediff_model.language import LanguageModel
from rediff_model.lean import LeanDecoder, suits
from rediff_model.settings import SamplerSettings


def some_model(*, qk_norm: bool, bias: bool) -> LanguageModel:
    """Random weights everywhere, norms and biases included."""
    torch.manual_seed(0)
    config = LanguageConfig(
        vocab_size=11,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        qk_norm=qk_norm,
        attention_bias=bias,
    )
    model = LanguageModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1))
    return model


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_gives_the_rows_of_the_decoder(qk_norm: bool, bias: bool) -> None:
    model = some_model(qk_norm=qk_norm, bias=bias)
    rows_TD = torch.randn(14, 24, dtype=torch.float64)
    position_T = torch.tensor([*range(7), *range(3, 10)])
    want_TD = model.model(rows_TD, position_T, DenseAttend(2))
    got_TD = LeanDecoder.of(model)(rows_TD.clone(), position_T, DenseAttend(2))
    torch.testing.assert_close(got_TD, want_TD, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("prefix_attention", ["full", "prefix"])
def test_without_it_captions_are_the_same(
    prefix_attention: PrefixAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "suits", lambda model: False)
    model = model_of(prefix_attention, 0)
    chosen = [
        SamplerSettings(canvas_length=9, tokens_per_step=2),
        SamplerSettings(canvas_length=4, cfg_scale=1.0, stop=()),
    ]
    prompts = [prompt_of(0, 3), prompt_of(1, 20)]
    for got, prompt, one in zip(
        sampler.generate(model, prompts, chosen, IDS), prompts, chosen, strict=True
    ):
        assert_equal(got, reference.generate(model, prompt, one, IDS))


def test_is_for_small_models_in_full_precision_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = some_model(qk_norm=False, bias=False)
    assert suits(model)
    assert suits(model.float())
    assert not suits(model.bfloat16())
    assert not suits(model.float().to("meta"))
    monkeypatch.setattr("rediff_model.lean.LARGEST", 1000)
    assert not suits(some_model(qk_norm=False, bias=False))

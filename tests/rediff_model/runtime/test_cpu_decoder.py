"""The lean decoder is the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from sampler_case import IDS, assert_equal, model_of, prompt_of

from rediff_model.config import LanguageConfig, PrefixAttention
from rediff_model.language import LanguageModel
from rediff_model.runtime import prompt_cache
from rediff_model.runtime.attention import DenseAttend
from rediff_model.runtime.cpu_decoder import LeanDecoder, suits
from rediff_model.sampling import reference, sampler
from rediff_model.sampling.params import SamplerSettings

if TYPE_CHECKING:
    from torch import Tensor


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


@pytest.mark.parametrize("qk_norm", [False, True])
@torch.inference_mode()
def test_rows_of_known_ids_are_looked_up_in_the_first_layer(qk_norm: bool) -> None:
    model = some_model(qk_norm=qk_norm, bias=True)
    ids_T = torch.randint(0, 11, (128,), generator=torch.Generator().manual_seed(0))
    rows_TD = model.model.embed_tokens(ids_T)
    position_T = torch.arange(64).repeat(2)
    want_TD = model.model(rows_TD, position_T, DenseAttend(2))
    lean = LeanDecoder.of(model)
    assert lean.first_VN is not None
    got_TD = lean(rows_TD.clone(), position_T, DenseAttend(2), ids_T)
    torch.testing.assert_close(got_TD, want_TD, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(lean.logits(got_TD), model.logits(want_TD), rtol=1e-11, atol=1e-11)
    lean.first_VN.zero_()
    blind_TD = lean(rows_TD.clone(), position_T, DenseAttend(2), ids_T)
    assert not torch.allclose(blind_TD, want_TD)


def test_keeps_no_table_of_many_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rediff_model.runtime.cpu_decoder.FEW_IDS", 10)
    assert LeanDecoder.of(some_model(qk_norm=True, bias=False)).first_VN is None


@torch.inference_mode()
def test_scores_are_bounded_by_the_norms_of_queries_and_keys() -> None:
    model = some_model(qk_norm=True, bias=False)
    lean = LeanDecoder.of(model)
    bound = max(layer.largest_score(6) for layer in lean.layers)
    highest = 0.0

    def attend(layer: int, query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor) -> Tensor:
        nonlocal highest
        keys_THE = key_TKE.repeat_interleave(3, dim=1)
        scores_HTT = torch.einsum("the,she->hts", query_THE, keys_THE) / query_THE.shape[2] ** 0.5
        highest = max(highest, scores_HTT.abs().max().item())
        return query_THE

    lean(torch.randn(500, 24, dtype=torch.float64), torch.arange(500), attend)
    assert bound / 4 < highest <= bound
    assert lean.bounded
    assert not LeanDecoder.of(some_model(qk_norm=False, bias=False)).bounded
    with torch.no_grad():
        model.model.layers[1].self_attn.q_norm.weight *= 100  # type: ignore[union-attr, operator]
    assert not LeanDecoder.of(model).bounded


@pytest.mark.parametrize("prefix_attention", ["full", "prefix"])
def test_without_it_captions_are_the_same(
    prefix_attention: PrefixAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_cache, "suits", lambda model: False)
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
    monkeypatch.setattr("rediff_model.runtime.cpu_decoder.LARGEST", 1000)
    assert not suits(some_model(qk_norm=False, bias=False))

"""The language model's parts, and that its attention layouts agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from rediff_model.config import LanguageConfig
from rediff_model.language import LanguageModel, RMSNorm, rotary_table, rotate
from rediff_model.runtime.attention import DenseAttend, PrefixAttend

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN = 16


def model_of(**changes: Any) -> LanguageModel:
    values: dict[str, Any] = {
        "vocab_size": 11,
        "hidden_size": HIDDEN,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    return LanguageModel(LanguageConfig(**values | changes)).double().eval()


def rows_of(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, HIDDEN, generator=generator, dtype=torch.float64) for n in lengths]


def alone(model: LanguageModel, rows_LD: Tensor) -> Tensor:
    output: Tensor = model.model(rows_LD, torch.arange(len(rows_LD)), DenseAttend(1))
    return output


VARIANTS: list[dict[str, Any]] = [{}, {"qk_norm": True}, {"attention_bias": True}]


@pytest.mark.parametrize("changes", VARIANTS)
@torch.inference_mode()
def test_padding_is_not_seen(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    rows = rows_of(3, 7, 5)
    padded_BLD = pad_sequence(rows, batch_first=True, padding_value=9.0)
    allowed_BL = torch.arange(7) < torch.tensor([[3], [7], [5]])
    hidden_TD = model.model(
        padded_BLD.flatten(0, 1), torch.arange(7).repeat(3), DenseAttend(3, allowed_BL)
    )
    for got_LD, one_LD in zip(hidden_TD.view(3, 7, -1), rows, strict=True):
        torch.testing.assert_close(got_LD[: len(one_LD)], alone(model, one_LD))


@pytest.mark.parametrize("changes", VARIANTS)
@torch.inference_mode()
def test_a_cached_prompt_is_exact(changes: dict[str, Any]) -> None:
    model = model_of(**changes)
    lengths, canvas = (2, 6, 4), 5
    prompts, canvases = rows_of(*lengths), rows_of(canvas, canvas, canvas)
    allowed_BP = torch.arange(6) < torch.tensor(lengths)[:, None]
    record = DenseAttend(3, allowed_BP, record=True)
    padded_BPD = pad_sequence(prompts, batch_first=True)
    model.model(padded_BPD.flatten(0, 1), torch.arange(6).repeat(3), record)
    own_BC = torch.ones(3, canvas, dtype=torch.bool)
    cached = PrefixAttend(record.keys, record.values, torch.cat((allowed_BP, own_BC), dim=1))
    positions_BC = torch.tensor(lengths)[:, None] + torch.arange(canvas)
    hidden_TD = model.model(torch.cat(canvases), positions_BC.flatten(), cached)
    for number, got_CD in enumerate(hidden_TD.view(3, canvas, -1)):
        length = lengths[number]
        single = DenseAttend(1, record=True)
        model.model(prompts[number], torch.arange(length), single)
        plain = PrefixAttend(single.keys, single.values)
        positions_C = torch.arange(length, length + canvas)
        torch.testing.assert_close(got_CD, model.model(canvases[number], positions_C, plain))


@torch.inference_mode()
def test_every_row_sees_every_other() -> None:
    model = model_of()
    (rows_LD,) = rows_of(6)
    before_LD = alone(model, rows_LD)
    for changed in range(6):
        other_LD = rows_LD.clone()
        other_LD[changed] += 1
        assert ((alone(model, other_LD) - before_LD).abs().amax(dim=1) > 1e-6).all()


def test_tied_embeddings_are_one_parameter() -> None:
    model = model_of(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model_of().lm_head.weight is not model_of().model.embed_tokens.weight


def test_rms_norm_is_computed_wide_and_cast_before_the_weight() -> None:
    norm = RMSNorm(64, 1e-5).to(torch.bfloat16)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    rows_TD = (torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) * 30).bfloat16()
    wide_TD = rows_TD.float()
    normed_TD = wide_TD / (wide_TD.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    want_TD = norm.weight * normed_TD.bfloat16()
    torch.testing.assert_close(norm(rows_TD), want_TD, atol=0.0, rtol=2**-7)
    assert norm(rows_TD).dtype == torch.bfloat16


def test_far_positions_keep_their_angle_in_half_precision() -> None:
    positions_T = torch.tensor([0, 1, 3700, 100_000])
    exact = rotary_table(positions_T, 32, 500000.0, torch.float64)
    half = rotary_table(positions_T, 32, 500000.0, torch.bfloat16)
    for got_TE, want_TE in zip(half, exact, strict=True):
        torch.testing.assert_close(got_TE.double(), want_TE, atol=0.02, rtol=0)


def test_rotation_depends_on_the_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    query_1HE, key_1HE = torch.randn(2, 1, 1, 8, generator=generator, dtype=torch.float64)
    products = []
    for query_position, key_position in ((5, 2), (105, 102)):
        query, key = (
            rotate(heads, rotary_table(torch.tensor([position]), 8, 10000.0, torch.float64))
            for heads, position in ((query_1HE, query_position), (key_1HE, key_position))
        )
        products.append((query * key).sum())
    torch.testing.assert_close(products[0], products[1])

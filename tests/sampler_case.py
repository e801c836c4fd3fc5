"""Tiny models, prompts and settings on which the batched sampler meets the reference."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hypothesis import strategies as st

from rediff_model.config import LanguageConfig, TokenIds
from rediff_model.language import LanguageModel
from rediff_model.sampling.params import Compat, SamplerSettings
from rediff_model.sampling.template import Choices, Masks, Template

if TYPE_CHECKING:
    from torch import Tensor

    from rediff_model.config import PrefixAttention
    from rediff_model.sampling.outputs import Generation

HIDDEN = 16
VOCABULARY = 9
IDS = TokenIds(mask=6, suppressed=(7, 8), stop=3, spaced=(0, 2, 3, 5))
"""So few ids that stops come and go, and the mask token is predicted, all the time."""


@cache
def model_of(prefix_attention: PrefixAttention, seed: int) -> LanguageModel:
    """A tiny float64 model whose predictions depend on the context."""
    torch.manual_seed(seed)
    config = LanguageConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        prefix_attention=prefix_attention,
    )
    model = LanguageModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def prompt_of(seed: int, length: int) -> Tensor:
    return torch.randn(
        length, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


tokens = st.integers(0, VOCABULARY - 1)


plain_tokens = st.sampled_from([0, 1, 2, 4, 5])
options = st.lists(plain_tokens, min_size=1, max_size=3).map(tuple)
parts = st.one_of(
    st.lists(plain_tokens, min_size=1, max_size=3).map(tuple),
    st.builds(Masks, st.integers(1, 4), st.booleans()),
    st.lists(options, min_size=2, max_size=4, unique=True).map(tuple).map(Choices),
)
templates = st.lists(parts, min_size=1, max_size=5).map(tuple).map(Template)


@st.composite
def with_template(draw: st.DrawFn) -> SamplerSettings:
    """Every setting that goes with a template."""
    template = draw(templates)
    chosen = draw(any_settings(("default",)))
    steps, tokens_per_step = draw(st.sampled_from([(None, 1), (None, 3), (4, None)]))
    return replace(
        chosen,
        template=template,
        steps=steps,
        tokens_per_step=tokens_per_step,
        canvas_length=template.canvas_length + draw(st.integers(0, 3)),
        block_length=None,
        draft=None,
        stop=None,
        suffix=(),
    )


@st.composite
def any_settings(
    draw: st.DrawFn, modes: tuple[Compat, ...] = ("default", "default", "official")
) -> SamplerSettings:
    """Every setting there is, but for templates."""
    block = draw(st.integers(1, 7))
    blocks = draw(st.integers(1, 3))
    canvas = block * blocks
    pace: dict[str, Any] = {}
    if draw(st.booleans()):
        pace["steps"] = blocks * draw(st.integers(1, 6))
    else:
        pace["tokens_per_step"] = draw(st.integers(1, 5))
    # A draft mostly of masks and stops: they are what matters.
    telling = st.sampled_from([IDS.mask, IDS.mask, IDS.stop, 0, 1, 2])
    sequences = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=2), max_size=3)
    compat: Compat = draw(st.sampled_from(modes))
    adaptive: dict[str, Any] = {}
    if compat == "default" and draw(st.booleans()):
        adaptive = {
            "reveal_threshold": draw(st.sampled_from([None, 0.0, 0.2, 0.3, 0.5, 1.0])),
            "end_threshold": draw(st.sampled_from([None, 0.0, 0.15, 0.3, 1.0])),
            "edit_threshold": draw(st.sampled_from([0.0, 0.0, 0.3, 0.5, 1.0])),
            "extra_refine_steps": draw(st.sampled_from([0, 1, 2, 12])),
        }
    return SamplerSettings(
        canvas_length=canvas,
        block_length=draw(st.sampled_from([block, None])) if blocks == 1 else block,
        refine=draw(st.booleans()) or draw(st.booleans()),
        refine_fraction=draw(st.sampled_from([None, 0.0, 0.3, 0.5, 0.9, 1.0])),
        refine_start=draw(st.sampled_from([1.0, 1.0, 0.5, 0.28, 0.0])),
        temperature=draw(st.sampled_from([0.0, 0.0, 0.4, 1.5])),
        seed=draw(st.integers(0, 2**63 - 1)),
        cfg_scale=draw(st.sampled_from([0.0, 0.0, 0.5, 2.0])),
        remasking=draw(st.sampled_from(["low_confidence", "low_confidence", "random"])),
        draft=draw(st.none() | st.lists(telling, max_size=canvas).map(tuple)),
        stop=draw(st.none() | sequences.map(lambda lists: tuple(map(tuple, lists)))),
        suffix=draw(st.just(()) | st.lists(tokens, max_size=3).map(tuple)),
        compat=compat,
        alternatives=draw(st.sampled_from([0, 0, 1, 4, VOCABULARY + 2])),
        **pace,
        **adaptive,
    )


def assert_equal(got: Generation, want: Generation) -> None:
    np.testing.assert_allclose(got.confidences, want.confidences, atol=1e-9)
    for one, other in zip(got.holes, want.holes, strict=True):
        np.testing.assert_allclose(one.chances or (), other.chances or (), atol=1e-9)
    for found, wanted in zip(got.alternatives, want.alternatives, strict=True):
        assert [one.id for one in found] == [one.id for one in wanted]
        np.testing.assert_allclose(
            [one.confidence for one in found], [one.confidence for one in wanted], atol=1e-9
        )
    assert without_numbers(got) == without_numbers(want)


def without_numbers(generation: Generation) -> Generation:
    """Without probabilities, which differ in their last digits."""
    holes = tuple(replace(hole, chances=None) for hole in generation.holes)
    return replace(generation, confidences=(), holes=holes, alternatives=())

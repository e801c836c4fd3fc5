"""Compiled layers: the captions of the reference, whoever joins and leaves."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from sampler_case import IDS, assert_equal, model_of, prompt_of

from rediff_model.sampling import reference
from rediff_model.sampling.params import SamplerSettings
from rediff_model.sampling.sampler import join, open_state, step

if TYPE_CHECKING:
    from rediff_model.config import PrefixAttention

SETTINGS = [
    SamplerSettings(canvas_length=12, tokens_per_step=2, stop=()),
    SamplerSettings(canvas_length=8, tokens_per_step=1, stop=(), cfg_scale=0.5),
]
PROMPTS = [prompt_of(1, 3), prompt_of(2, 5)]


# torch's compiler uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
@pytest.mark.parametrize("prefix_attention", ["full", "prefix"])
def test_compiled_layers_give_the_captions_of_the_reference(
    prefix_attention: PrefixAttention,
) -> None:
    model = model_of(prefix_attention, 0)
    state = open_state(model, IDS, compiled=True)
    state = join(model, state, (0,), PROMPTS[:1], SETTINGS[:1])
    for number in range(12):
        if number == 2:
            state = join(model, state, (1,), PROMPTS[1:], SETTINGS[1:])
        if state.slots is not None:
            state, _ = step(model, state)
    for request, (prompt_PD, settings) in enumerate(zip(PROMPTS, SETTINGS, strict=True)):
        assert_equal(state.finished[request], reference.generate(model, prompt_PD, settings, IDS))

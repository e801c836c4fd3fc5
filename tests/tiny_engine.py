"""A language model of a few numbers in float64, its prompts, and batches of it without a tower."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from rediff_model.config import LanguageConfig, TokenIds
from rediff_model.language import LanguageModel
from rediff_model.sampling import sampler
from server.engine.model_runner import SamplerBatch

if TYPE_CHECKING:
    from rediff_model.config import PrefixAttention

IDS = TokenIds(mask=29, suppressed=(27, 28), stop=26)
PROMPTS = (3, 9, 14, 3)
"""Prompt rows."""


@cache
def model_of(attention: PrefixAttention) -> LanguageModel:
    torch.manual_seed(3)
    config = LanguageConfig(30, 16, 24, 2, 2, 2, prefix_attention=attention)
    return LanguageModel(config).double().eval()


@cache
def prompt_of(place: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(place)
    return torch.randn(PROMPTS[place], 16, generator=generator, dtype=torch.float64)


class BareRunner:
    """Opens the sampler's batches."""

    def __init__(self, model: LanguageModel, interval: int | None = 1) -> None:
        self._model = model
        self._interval = interval

    def open(self) -> SamplerBatch:
        state = sampler.open_state(self._model, IDS, prompt_refresh_interval=self._interval)
        return SamplerBatch(self._model, state, self._interval)

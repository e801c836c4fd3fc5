"""On a CUDA device: the batched sampler gives the tokens that the reference gives on the CPU."""

import pytest
import torch

from rediff_model.config import LanguageConfig, PrefixAttention, TokenIds
from rediff_model.language import LanguageModel
from rediff_model.sampling import reference
from rediff_model.sampling.params import SamplerSettings
from rediff_model.sampling.sampler import generate

IDS = TokenIds(mask=95, suppressed=(94, 93), stop=92)
SETTINGS = [
    SamplerSettings(canvas_length=16, tokens_per_step=1),
    SamplerSettings(canvas_length=16, tokens_per_step=4, refine=False),
    SamplerSettings(canvas_length=16, block_length=8, tokens_per_step=2),
    SamplerSettings(canvas_length=16, tokens_per_step=4, temperature=0.7, seed=3),
]


@pytest.mark.gpu
@pytest.mark.parametrize("prefix_attention", ["full", "prefix"])
def test_the_batched_sampler_on_cuda_equals_the_reference(
    prefix_attention: PrefixAttention,
) -> None:
    torch.manual_seed(0)
    config = LanguageConfig(96, 32, 64, 2, 4, 2, prefix_attention=prefix_attention)
    model = LanguageModel(config).double().eval()
    prompts = [torch.randn(rows, 32, dtype=torch.float64) for rows in (5, 9, 5, 12)]
    expected = [
        reference.generate(model, prompt, settings, IDS).canvas
        for prompt, settings in zip(prompts, SETTINGS, strict=True)
    ]
    model.cuda()
    found = generate(model, [prompt.cuda() for prompt in prompts], SETTINGS, IDS)
    assert [made.canvas for made in found] == expected

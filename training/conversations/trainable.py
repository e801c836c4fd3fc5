"""Which weights of a captioner are trained, at which rate, and which ids replace tokens."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Collection

    from tokenizers import Tokenizer

    from rediff_model.model import CaptionModel
    from rediff_model.sampling.params import Compat
    from training.conversations.config import Part, Rates

UNUSED = "post_layernorm"
"""SigLIP's final norm: published, but its output is never looked at."""


def part_of(name: str) -> Part:
    """The part of a captioner that a weight belongs to."""
    if "vision_tower" in name:
        return "vision"
    return "projector" if "mm_projector" in name or "image_newline" in name else "language"


def choose_trained(model: CaptionModel, parts: Collection[Part], *, half: bool) -> None:
    """Freeze all weights but those of `parts`; of an adapted model its adapters alone.

    Trained weights are float32; the others bfloat16 where `half` says so.
    """
    named = dict(model.named_parameters())
    adapted = any(".lora_" in name for name in named)
    for name, value in named.items():
        part = part_of(name)
        trained = part in parts and UNUSED not in name
        if adapted and part == "language":
            trained = trained and ".lora_" in name
        value.requires_grad_(trained)
        if trained or half:
            value.data = value.data.to(torch.float32 if trained else torch.bfloat16)


def optimizer_of(objective: nn.Module, rates: Rates) -> torch.optim.Optimizer:
    """AdamW with a rate for each part; weight decay on matrices only."""
    groups: dict[tuple[Part, bool], list[nn.Parameter]] = {}
    for name, value in objective.named_parameters():
        if value.requires_grad:
            groups.setdefault((part_of(name), value.ndim > 1), []).append(value)
    by_part: dict[Part, float] = {
        "language": rates.language,
        "projector": rates.projector,
        "vision": rates.vision,
    }
    return torch.optim.AdamW(
        [
            {
                "params": values,
                "lr": by_part[part],
                "weight_decay": rates.weight_decay if decayed else 0.0,
            }
            for (part, decayed), values in groups.items()
        ],
        betas=rates.betas,
    )


def random_ids(tokenizer: Tokenizer, vocabulary: int, compat: Compat) -> tuple[int, int]:
    """Half-open range of the ids that replace tokens: the longest one without a special token.

    The official code takes 1 to vocabulary - 1000.
    """
    if compat == "official" and vocabulary > 1001:
        return 1, vocabulary - 1000
    added = json.loads(tokenizer.to_str())["added_tokens"]
    end = tokenizer.get_vocab_size(with_added_tokens=True)
    edges = [-1, *sorted(token["id"] for token in added if token["special"]), end]
    low, high = max(pairwise(edges), key=lambda pair: pair[1] - pair[0])
    return low + 1, high

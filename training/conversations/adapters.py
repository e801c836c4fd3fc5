"""Low-rank adapters (LoRA, arXiv 2106.09685) on the language model, through peft."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from peft import LoraConfig
from peft.tuners.lora import LoraModel

from training.config import TrainConfigError

if TYPE_CHECKING:
    from torch import nn

    from training.conversations.config import LoraShape

ADAPTER = "default"


def add_adapters(model: nn.Module, shape: LoraShape) -> LoraModel:
    """Put adapters into `model`, in place; they begin as nothing. The rest is frozen.

    Raises:
        TrainConfigError: a target that no layer of the language model has.
    """
    for target in shape.targets:
        if not any(
            re.fullmatch(rf"model\.layers\.\d+\.\w+\.{re.escape(target)}", name)
            for name, _ in model.named_modules()
        ):
            raise TrainConfigError(f"lora.targets: no layer of the language model has {target}")
    targets = "|".join(map(re.escape, shape.targets))
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=rf"model\.layers\.\d+\.\w+\.({targets})",
    )
    return LoraModel(model, config, ADAPTER)


def merge_adapters(adapted: LoraModel) -> None:
    """Add the adapters to the weights they adapt, and take them out of the model, in place."""
    adapted.merge_and_unload()

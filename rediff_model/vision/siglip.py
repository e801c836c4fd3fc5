"""Vision towers: the interface, and SigLIP as LLaDA-V and ReDiff use it.

Shape suffixes: N tiles, T side of a tile in pixels, P patches of a tile in reading order, F size of
a feature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from rediff_model.vision.efficientnet import EfficientNetTower

if TYPE_CHECKING:
    from rediff_model.config import VisionConfig


class VisionTower(Protocol):
    """What turns tiles into features; an implementation is an `nn.Module`."""

    @property
    def hidden_size(self) -> int:
        """Size of a feature, F."""
        ...

    @property
    def patches_per_side(self) -> int:
        """Patches along a side of a tile; P is its square."""
        ...

    def normalise(self, tiles_N3TT: Tensor) -> Tensor:
        """uint8 RGB tiles to the numbers the tower was trained on, in its dtype."""
        ...

    def __call__(self, pixels_N3TT: Tensor) -> Tensor:
        """Features, [N, P, F], of normalised tiles."""
        ...


class SiglipTower(nn.Module):
    """SigLIP without its last layer, its final norm and its pooling head.

    Patches are linear in the pixels; those right and below that do not fill a patch are dropped.
    The final norm is never applied but kept, because published checkpoints carry it.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        # Imported here: it takes seconds, which the embedded model need not pay.
        from transformers import SiglipVisionConfig, SiglipVisionModel

        self.config = config
        model = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers - 1,
                num_attention_heads=config.num_attention_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
                layer_norm_eps=config.layer_norm_eps,
                hidden_act="gelu_pytorch_tanh",
                vision_use_head=False,
            )
        )
        # Not left to a `torch.device("meta")` context: checkpoints do not hold it.
        positions = torch.arange(config.patches_per_side**2, device="cpu")[None]
        model.embeddings.register_buffer("position_ids", positions, persistent=False)
        # Two levels as in published tensor names: vision_tower.vision_model.encoder and so on.
        self.vision_tower = nn.Module()
        self.vision_tower.vision_model = model

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def patches_per_side(self) -> int:
        return self.config.patches_per_side

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def normalise(self, tiles_N3TT: Tensor) -> Tensor:
        """Grey levels 0 to 255 (uint8) to -1 to 1."""
        return ((tiles_N3TT.float() / 255 - 0.5) / 0.5).to(self.dtype)

    def forward(self, pixels_N3TT: Tensor) -> Tensor:
        """Features, [N, P, F]: the output of the last layer but one."""
        model = self.vision_tower.vision_model
        hidden = model.encoder(inputs_embeds=model.embeddings(pixels_N3TT))  # type: ignore[operator, union-attr]
        return cast("Tensor", hidden.last_hidden_state)


def build_tower(config: VisionConfig) -> SiglipTower | EfficientNetTower:
    """The tower that a configuration names, with weights still to be loaded.

    Raises:
        ConfigError: the tower cannot have these sizes.
    """
    if config.tower == "efficientnet_lite0":
        return EfficientNetTower(config)
    return SiglipTower(config)


def build_projector(feature_size: int, hidden_size: int) -> nn.Sequential:
    """From a tower's features to rows of the language model (`mlp2x_gelu`, exact GELU)."""
    return nn.Sequential(
        nn.Linear(feature_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
    )

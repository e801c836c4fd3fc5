"""Sharpens the tower: its late stages and the projector learn the labels of every cell.

ImageNet's weights see large things; a sticker of 50 pixels is small. The stages up to stride 16
stay as they are, so their maps are computed once and kept.

Shape suffixes: B pictures, P feature cells, C cells of the stride-16 map, F channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from training.loop import LoopSettings, train
from training.scenes.alignment import DenseBatch, DenseObjective, as_batch, dense_labels
from training.scenes.features import as_map

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer

    from rediff_model.efficientnet import EfficientNetTower
    from training.scenes.features import SceneFeatures
    from training.stage1 import SceneRun

HEAD_STEPS = 300
"""Steps in which the throwaway heads learn to read the projector as it is, so that what they then
ask of the tower keeps the language of the projector's output."""
PICTURES = 16
"""Pictures a step."""
HEAD_RATE = 3e-3
TOWER_RATE = 1e-4
PROJECTOR_RATE = 2e-4


class Eye(nn.Module):
    """From stride-16 maps to the rows of the language model."""

    def __init__(self, tower: EfficientNetTower, projector: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector

    def forward(self, maps_BCF: Tensor) -> Tensor:
        """Cells of stride-16 maps to projected feature cells, [B, P, D]."""
        rows: Tensor = self.projector(self.tower.features(self.tower.deepened(as_map(maps_BCF))))
        return rows


def sharpen(scene_run: SceneRun, maps: SceneFeatures) -> None:
    """Train late stages and projector on `maps`, resuming what the run's folder holds.

    The depthwise kernels stay as they are: their gradient takes most of a step on a CPU.
    """
    config, model = scene_run.config, scene_run.model
    tower = cast("EfficientNetTower", model.tower)
    projector = cast("nn.Module", model.model.mm_projector)
    eye = Eye(tower, projector)
    objective = DenseObjective(
        eye, scene_run.model_config.language.hidden_size, len(scene_run.atlas.names)
    ).to(model.device)
    heads = [*objective.norm.parameters(), *objective.heads.parameters()]
    late = [
        value for name, value in tower.late_stages().named_parameters() if ".depthwise." not in name
    ]

    def part(
        name: str, steps: int, groups: list[tuple[list[nn.Parameter], float]], clip: float
    ) -> None:
        objective.requires_grad_(False)
        for parameters, _ in groups:
            for parameter in parameters:
                parameter.requires_grad_(True)
        optimizer: Optimizer = torch.optim.AdamW(
            [{"params": parameters, "lr": rate} for parameters, rate in groups],
            weight_decay=0.01,
        )
        settings = LoopSettings(
            steps=steps,
            precision=config.precision,
            clip=clip,
            tail=0.6,
            parts=config.parts,
            save_every=100,
        )
        batch = _batches(scene_run, maps)
        average = train(objective, [optimizer], batch, settings, scene_run.folder / name)
        trained = dict(objective.named_parameters())
        with torch.no_grad():
            for key, value in average.items():
                trained[key].copy_(value)

    part("heads", HEAD_STEPS, [(heads, HEAD_RATE)], 100.0)
    projected = list(projector.parameters())
    part(
        "tower",
        config.tower_steps,
        [(late, TOWER_RATE), (projected, PROJECTOR_RATE), (heads, PROJECTOR_RATE)],
        100.0,
    )
    with torch.no_grad():
        for value in late:
            # A checkpoint holds the tower in half precision: features shall be of those weights.
            value.copy_(value.half())
    model.requires_grad_(True)
    tower.requires_grad_(False)


def _batches(scene_run: SceneRun, maps: SceneFeatures) -> Callable[[int, int], DenseBatch]:
    names, seed = scene_run.atlas.names, scene_run.config.seed
    side = scene_run.model_config.vision.patches_per_side

    def batch(step: int, part: int) -> DenseBatch:
        rng = np.random.default_rng((seed, 6, step, part))
        rows = rng.integers(0, len(maps.scenes), PICTURES)
        labels = dense_labels([maps.scenes[row] for row in rows], names, side)
        return as_batch(maps.rows(rows), labels)

    return batch

"""Sharpens the tower: its late stages and the projector learn the labels of every cell.

ImageNet's weights see large things; a sticker of 50 pixels is small. The stages up to stride 16
stay as they are, so their maps are computed once and kept.

Shape suffixes: B pictures, P feature cells, K label kinds, C cells of the stride-16 map, F
channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from training.loop.state import take_over
from training.loop.train import LoopSettings, train
from training.scenes.cell_labels import DenseBatch, DenseObjective, dense_labels
from training.scenes.features import as_map

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer

    from rediff_model.vision.efficientnet import EfficientNetTower
    from training.scenes.features import SceneFeatures
    from training.scenes.new_model import SceneRun

HEAD_STEPS = 300
"""Steps in which the throwaway heads learn to read the projector as it is, so that what they then
ask of the tower keeps the language of the projector's output."""
PICTURES = 16
"""Pictures a step."""
HEAD_RATE = 3e-3
TOWER_RATE = 1e-4
PROJECTOR_RATE = 2e-4


@dataclass(frozen=True, slots=True)
class SharpBatch:
    """Cells of stride-16 maps, and labels of the feature cells."""

    maps_BCF: Tensor
    labels_BPK: Tensor

    def weight(self) -> float:
        return float(self.labels_BPK.shape[0] * self.labels_BPK.shape[1])

    def to(self, device: torch.device) -> Self:
        return type(self)(self.maps_BCF.to(device), self.labels_BPK.to(device))


class SharpObjective(nn.Module):
    """The dense labels from the projected cells, as `DenseObjective`."""

    def __init__(self, tower: EfficientNetTower, dense: DenseObjective) -> None:
        super().__init__()
        self.tower = tower
        self.dense = dense

    def forward(self, batch: SharpBatch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        features_BPF = self.tower.features(self.tower.deepened(as_map(batch.maps_BCF)))
        found: tuple[Tensor, dict[str, tuple[Tensor, Tensor]]] = self.dense(
            DenseBatch(features_BPF, batch.labels_BPK)
        )
        return found


def sharpen(scene_run: SceneRun, maps: SceneFeatures) -> None:
    """Train the late stages' products and the projector on `maps`, resuming what the run's folder
    holds."""
    config, model = scene_run.config, scene_run.model
    tower = cast("EfficientNetTower", model.tower)
    projector = cast("nn.Module", model.model.mm_projector)
    dense = DenseObjective(
        projector, scene_run.model_config.language.hidden_size, len(scene_run.atlas.names)
    )
    objective = SharpObjective(tower, dense).to(model.device)
    heads = [*dense.norm.parameters(), *dense.heads.parameters()]
    late = tower.late_products()

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
        batch = batches_of(scene_run, maps)
        average = train(objective, [optimizer], batch, settings, scene_run.folder / name)
        take_over(objective, average)

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


def batches_of(scene_run: SceneRun, maps: SceneFeatures) -> Callable[[int, int], SharpBatch]:
    """The pictures of a step, by its number."""
    names, seed = scene_run.atlas.names, scene_run.config.seed
    side = scene_run.model_config.vision.patches_per_side

    def batch(step: int, part: int) -> SharpBatch:
        rng = np.random.default_rng((seed, 6, step, part))
        rows = rng.integers(0, len(maps.scenes), PICTURES)
        scenes = [maps.scenes[row] for row in rows]
        labels = torch.from_numpy(dense_labels(scenes, names, side))
        return SharpBatch(maps.rows(rows), labels)

    return batch

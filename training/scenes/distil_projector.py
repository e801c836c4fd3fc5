"""Teaches a projector to read a tower that has changed as the language model is used to.

It learns to give the vectors that the old one gave of the old tower, and to take names from the
tower's classes first: the rest of its input is at times of other pictures on the same plates.

Shape suffixes: N scenes, B pictures, P feature cells, F feature channels, D hidden size, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from rediff_model.vision.efficientnet import FEATURE_CHANNELS
from training.loop.state import take_over
from training.loop.train import LoopSettings, train
from training.stickers.atlas import Atlas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rediff_model.model import CaptionModel
    from training.scenes.features import SceneFeatures
    from training.scenes.new_model import SceneRun

READ_STEPS = 3000
READ_PICTURES = 64
READ_RATE = 1e-3
SHUFFLED = 0.2
"""Share of the projector's pictures whose features but the classifier's are of other pictures."""
DOUBT = 0.6
"""Of a cell's share, what other names may be given: photographs leave doubts, drawings hardly."""


def shuffled(atlas: Atlas, number: int) -> Atlas:
    """The atlas with the pictures of other names under every name."""
    order = np.random.default_rng(number).permutation(len(atlas.names))
    names = atlas.names
    # A cycle through all of them: no name keeps its picture.
    following = {
        names[one]: names[other] for one, other in zip(order, np.roll(order, 1), strict=True)
    }
    pictures = {
        (vendor, name): atlas.picture(vendor, following[name])
        for vendor in atlas.vendors
        for name in names
    }
    return Atlas(names, atlas.vendors, pictures)


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """Features, and the vectors that the language model knows for these cells."""

    features_BPF: Tensor
    wanted_BPD: Tensor

    def weight(self) -> float:
        return float(len(self.features_BPF))

    def to(self, device: torch.device) -> Self:
        return type(self)(self.features_BPF.to(device), self.wanted_BPD.to(device))


class ReadObjective(nn.Module):
    """Squared error of the projector's vectors, as a share of the wanted ones' variance."""

    def __init__(self, projector: nn.Module, variance: float) -> None:
        super().__init__()
        self.projector = projector
        self.variance = variance

    def forward(self, batch: ReadBatch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        found_BPD = self.projector(batch.features_BPF).float()
        error = mse_loss(found_BPD, batch.wanted_BPD) / self.variance
        weight = batch.weight()
        return error * weight, {"error": (error.detach() * weight, torch.tensor(weight))}


def teach_projector(
    scene_run: SceneRun,
    old: CaptionModel,
    features: SceneFeatures,
    wanted: SceneFeatures,
    others: Sequence[tuple[int, np.ndarray]],
) -> None:
    """Train the projector to give what the old one gives, with names from the classes first.

    `others` are features of scenes with other pictures, and the number of the first of them.
    """
    config, device = scene_run.config, scene_run.model.device
    projector = cast("nn.Module", scene_run.model.model.mm_projector)
    old_projector = cast("nn.Module", old.model.mm_projector).to(device)
    with torch.inference_mode():
        known_NPD = torch.cat(
            [
                old_projector(
                    wanted.rows(np.arange(start, min(start + 256, len(wanted.scenes)))).to(device)
                ).cpu()
                for start in range(0, len(wanted.scenes), 256)
            ]
        )
    known_NPD = known_NPD.clone()
    places = [(first + row, pool, row) for first, pool in others for row in range(len(pool))]

    def batch(step: int, part: int) -> ReadBatch:
        rng = np.random.default_rng((config.seed, 9, step, part))
        rows = rng.integers(0, len(features.scenes), READ_PICTURES)
        mixed = rng.random(READ_PICTURES) < SHUFFLED
        rest = {}
        for i in np.flatnonzero(mixed).tolist():
            place, pool, row = places[int(rng.integers(len(places)))]
            rows[i] = place
            rest[i] = torch.from_numpy(pool[row].astype(np.float32))
        features_BPF = features.rows(rows)
        for i, other_PF in rest.items():
            features_BPF[i, :, :FEATURE_CHANNELS] = other_PF[:, :FEATURE_CHANNELS]
        features_BPF[..., FEATURE_CHANNELS:] = doubted(features_BPF[..., FEATURE_CHANNELS:], rng)
        return ReadBatch(features_BPF, known_NPD[torch.from_numpy(rows)])

    scene_run.model.requires_grad_(False)
    projector.requires_grad_(True)
    objective = ReadObjective(projector, float(known_NPD.flatten(0, 1).var(0).mean()))
    settings = LoopSettings(
        steps=READ_STEPS,
        precision=config.precision,
        parts=config.parts,
        save_every=500,
    )
    optimizer = torch.optim.AdamW(projector.parameters(), lr=READ_RATE, weight_decay=0.01)
    take_over(objective, train(objective, [optimizer], batch, settings, scene_run.folder / "read"))


def doubted(shares_BPK: Tensor, rng: np.random.Generator) -> Tensor:
    """Shares of which others take a part, up to `DOUBT`, and some is lost."""
    pictures, cells, classes = shares_BPK.shape
    taken = torch.from_numpy(rng.uniform(0, DOUBT, (pictures, cells, 1)).astype(np.float32))
    kept = torch.from_numpy(rng.uniform(0.4, 1, (pictures, cells, 1)).astype(np.float32))
    # Three other names for every cell, the first with most.
    parts = torch.tensor([0.6, 0.3, 0.1])
    chosen = torch.from_numpy(rng.integers(0, classes, (pictures, cells, 3)))
    noise = torch.zeros_like(shares_BPK).scatter_add_(
        2, chosen, parts.expand(pictures, cells, 3).contiguous()
    )
    whole = shares_BPK.sum(-1, keepdim=True)
    return kept * ((1 - taken) * shares_BPK + taken * whole * noise)

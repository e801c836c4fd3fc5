"""Aligns the projector: throwaway heads read dense labels of every cell from its output.

Shape suffixes: B pictures, P cells, F feature channels, D hidden size, K label kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from training.stickers.graph import (
    BACKDROPS,
    COLOURS,
    PATTERNS,
    PICTURE_SIZE,
    SHAPES,
    SIZES,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.stickers.graph import Scene

KINDS = ("name", "colour", "shape", "size", "backdrop", "pattern")
LOOKS = KINDS[1:]
"""All but the name: what a drawing's variations leave as it is."""
NOTHING = -100
"""Label of a sticker's attribute in a cell without one."""


def dense_labels(scenes: Sequence[Scene], names: Sequence[str], side: int) -> np.ndarray:
    """Labels of each cell of a side x side grid, int64 [B, P, K].

    A cell speaks of the sticker whose plate covers most of it, if that is a quarter or more; the
    name's label of the others is len(names), "none".
    """
    index = {name: number for number, name in enumerate(names)}
    labels = np.full((len(scenes), side * side, len(KINDS)), NOTHING, dtype=np.int64)
    labels[:, :, 0] = len(names)
    edges = np.arange(side + 1) * PICTURE_SIZE / side
    for row, scene in enumerate(scenes):
        labels[row, :, 4] = BACKDROPS.index(scene.backdrop)
        labels[row, :, 5] = PATTERNS.index(scene.pattern)
        best = np.full(side * side, 0.25 * (PICTURE_SIZE / side) ** 2)
        for sticker in scene.stickers:
            x0, y0, x1, y1 = sticker.box
            wide = np.clip(np.minimum(edges[1:], x1) - np.maximum(edges[:-1], x0), 0, None)
            high = np.clip(np.minimum(edges[1:], y1) - np.maximum(edges[:-1], y0), 0, None)
            covered = np.outer(high, wide).ravel()
            cells = covered >= best
            best = np.maximum(best, covered)
            labels[row, cells, 0] = index[sticker.name]
            labels[row, cells, 1] = COLOURS.index(sticker.colour)
            labels[row, cells, 2] = SHAPES.index(sticker.shape)
            labels[row, cells, 3] = SIZES.index(sticker.size)
    return labels


@dataclass(frozen=True, slots=True)
class DenseBatch:
    """Features and the labels of their cells."""

    features_BPF: Tensor
    labels_BPK: Tensor

    def weight(self) -> float:
        return float(self.labels_BPK.shape[0] * self.labels_BPK.shape[1])

    def to(self, device: torch.device) -> Self:
        return type(self)(self.features_BPF.to(device), self.labels_BPK.to(device))


class DenseObjective(nn.Module):
    """Cross entropy of every label kind, or of some, from the projected cells."""

    def __init__(
        self,
        projector: nn.Module,
        hidden_size: int,
        names: int,
        kinds: Sequence[str] = KINDS,
    ) -> None:
        super().__init__()
        self.projector = projector
        values = (COLOURS, SHAPES, SIZES, BACKDROPS, PATTERNS)
        sizes = dict(zip(KINDS, (names + 1, *map(len, values)), strict=True))
        self.kinds = tuple(kinds)
        self.norm = nn.LayerNorm(hidden_size)
        self.heads = nn.ModuleList(nn.Linear(hidden_size, sizes[kind]) for kind in kinds)

    def forward(self, batch: DenseBatch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The summed loss, and for every kind the (number right, number) of labelled cells."""
        hidden_BPD = self.norm(self.projector(batch.features_BPF))
        total = hidden_BPD.new_zeros(())
        parts = {}
        for kind, head in zip(self.kinds, self.heads, strict=True):
            logits_TV = head(hidden_BPD).flatten(0, 1).float()
            labels_T = batch.labels_BPK[:, :, KINDS.index(kind)].flatten()
            total = total + cross_entropy(logits_TV, labels_T, reduction="sum")
            spoken_T = labels_T != NOTHING
            if kind == "name":
                spoken_T = spoken_T & (labels_T != logits_TV.shape[1] - 1)  # not "none"
            right_T = logits_TV.argmax(-1) == labels_T
            parts[f"right_{kind}"] = (right_T[spoken_T].sum().detach(), spoken_T.sum())
        return total, parts


def as_batch(features_BPF: Tensor, labels_BPK: np.ndarray) -> DenseBatch:
    return DenseBatch(features_BPF, torch.from_numpy(labels_BPK))

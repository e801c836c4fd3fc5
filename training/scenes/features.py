"""Features of rendered scenes from a frozen tower, computed once and kept on disk.

Shape suffixes: N scenes, P cells of a picture, F feature channels, T side of a picture in pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from rediff_model.files.atomic import write_json
from rediff_model.vision.efficientnet import LATE_WEIGHTS, MIDDLE_CHANNELS, MIDDLE_STRIDE
from rediff_model.vision.tiling import cut_tiles
from training.stickers.render import render
from training.stickers.sample import sample_scene

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    from rediff_model.config import ModelConfig
    from rediff_model.model import CaptionModel
    from rediff_model.vision.efficientnet import EfficientNetTower
    from training.stickers.atlas import Atlas
    from training.stickers.graph import Scene

logger = logging.getLogger(__name__)

BATCH = 32


@dataclass(frozen=True, slots=True)
class SceneFeatures:
    """Scenes of one split with their cached features."""

    scenes: tuple[Scene, ...]
    features_NPF: np.ndarray
    """float16, memory-mapped; or the cells of another map of the tower."""

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        """Features of some scenes, float32, [len(indices), P, F]."""
        return torch.from_numpy(self.features_NPF[indices].astype(np.float32))


def scene_tiles(scenes: Sequence[Scene], atlas: Atlas, config: ModelConfig) -> torch.Tensor:
    """Rendered pictures as the captioner tiles them, uint8, [N, 3, T, T]; one tile each."""
    return torch.cat([cut_tiles(render(scene, atlas), config) for scene in scenes])


def load_or_build(
    split: str,
    first: int,
    count: int,
    atlas: Atlas,
    model: CaptionModel,
    folder: Path,
    maps: SceneFeatures | None = None,
) -> SceneFeatures:
    """Features of scenes `first` to `first + count` of a split, from `folder` or computed into it.

    An interrupted build goes on where it stopped. The file is keyed by split, range and a
    fingerprint of how pictures and features are made. With `maps`, the stride-16 maps of the same
    scenes, nothing is rendered.
    """
    scenes = tuple(sample_scene(seed, atlas, split=split) for seed in range(first, first + count))
    tower = model.tower
    shape = (count, tower.patches_per_side**2, tower.hidden_size)
    stem = f"{split}-{first}-{count}-{fingerprint(scenes[0], atlas, model)}"

    def features(start: int, end: int) -> torch.Tensor:
        if maps is None:
            tiles = scene_tiles(scenes[start:end], atlas, model.config)
            return tower(tower.normalise(tiles.to(model.device)))
        rows_NPC = maps.rows(np.arange(start, end)).to(model.device)
        trunk = cast("EfficientNetTower", tower)
        return trunk.features(trunk.deepened(as_map(rows_NPC)))

    return SceneFeatures(scenes, _kept(folder / stem, shape, features, model.device))


def load_or_build_maps(
    split: str, first: int, count: int, atlas: Atlas, model: CaptionModel, folder: Path
) -> SceneFeatures:
    """The tower's stride-16 maps of scenes, cells [P, C] row by row; kept as features are.

    The fingerprint is of the stages that make the maps, not of those behind them.
    """
    scenes = tuple(sample_scene(seed, atlas, split=split) for seed in range(first, first + count))
    tower = cast("EfficientNetTower", model.tower)
    side = tower.config.image_size // MIDDLE_STRIDE
    made = fingerprint(scenes[0], atlas, model, without=LATE_WEIGHTS)
    stem = f"{split}-maps-{first}-{count}-{made}"

    def maps(start: int, end: int) -> torch.Tensor:
        tiles = scene_tiles(scenes[start:end], atlas, model.config).to(model.device)
        return tower.maps(tower.normalise(tiles))["stride16"].flatten(2).transpose(1, 2)

    shape = (count, side**2, MIDDLE_CHANNELS)
    return SceneFeatures(scenes, _kept(folder / stem, shape, maps, model.device))


def as_map(rows_NPC: torch.Tensor) -> torch.Tensor:
    """Cells row by row as a square map, [N, C, H, W], channels last in memory."""
    side = math.isqrt(rows_NPC.shape[1])
    return rows_NPC.reshape(-1, side, side, rows_NPC.shape[-1]).permute(0, 3, 1, 2)


def _kept(
    path: Path,
    shape: tuple[int, int, int],
    compute: Callable[[int, int], torch.Tensor],
    device: torch.device,
) -> np.ndarray:
    """What `compute` says of rows `start` to `end`, float16 of a shape, from `path` or into it.

    Values that are not all there, whatever their note says, are computed anew.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data, done_file = path.with_name(f"{path.name}.f16"), path.with_name(f"{path.name}.json")
    done = _noted(done_file)
    if not data.exists() or data.stat().st_size != 2 * math.prod(shape):
        if done:
            logger.warning("%s is not whole: its features are computed anew", data)
        done = 0
        np.memmap(data, dtype=np.float16, mode="w+", shape=shape)
    rows_NPF = np.memmap(data, dtype=np.float16, mode="r+", shape=shape)
    for batch, start in enumerate(range(done, shape[0], BATCH)):
        end = min(shape[0], start + BATCH)
        # A processor without bfloat16 emulates it, several times slower than float32.
        bfloat16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu")
        with torch.inference_mode(), bfloat16:
            part = compute(start, end)
        rows_NPF[start:end] = part.to("cpu", torch.float16).numpy()
        if batch % 16 == 0 or end == shape[0]:
            rows_NPF.flush()
            write_json(done_file, {"done": end})
    return np.memmap(data, dtype=np.float16, mode="r", shape=shape)


def _noted(path: Path) -> int:
    """How many rows are done, by a note; 0 if there is none that can be read."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["done"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def fingerprint(
    scene: Scene, atlas: Atlas, model: CaptionModel, without: tuple[str, ...] = ()
) -> str:
    """A hash of one scene's pixels, the pictures it is made with, and the tower's weights.

    Weights whose names begin with any of `without` do not count.
    """
    digest = hashlib.sha256(scene_tiles([scene], atlas, model.config).numpy().tobytes())
    for vendor in atlas.vendors:
        digest.update(vendor.encode())
        for name in atlas.names:
            digest.update(atlas.picture(vendor, name).tobytes())
    for name, value in cast("nn.Module", model.tower).state_dict().items():
        if not name.startswith(without):
            digest.update(value.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]

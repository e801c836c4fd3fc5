"""Features of rendered scenes from a frozen tower, computed once and kept on disk.

Shape suffixes: N scenes, P cells of a picture, F feature channels, T side of a picture in pixels.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from rediff_model.tiling import cut_tiles
from training.scenes.render import render
from training.scenes.sample import sample_scene

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from rediff_model.config import ModelConfig
    from rediff_model.model import CaptionModel
    from training.scenes.atlas import Atlas
    from training.scenes.graph import Scene

BATCH = 32


@dataclass(frozen=True, slots=True)
class SceneFeatures:
    """Scenes of one split with their cached features."""

    scenes: tuple[Scene, ...]
    features_NPF: np.ndarray
    """float16, memory-mapped."""

    def rows(self, indices: np.ndarray) -> torch.Tensor:
        """Features of some scenes, float32, [len(indices), P, F]."""
        return torch.from_numpy(self.features_NPF[indices].astype(np.float32))


def scene_tiles(scenes: Sequence[Scene], atlas: Atlas, config: ModelConfig) -> torch.Tensor:
    """Rendered pictures as the captioner tiles them, uint8, [N, 3, T, T]; one tile each."""
    return torch.cat([cut_tiles(render(scene, atlas), config) for scene in scenes])


def load_or_build(
    split: str, first: int, count: int, atlas: Atlas, model: CaptionModel, folder: Path
) -> SceneFeatures:
    """Features of scenes `first` to `first + count` of a split, from `folder` or computed into it.

    An interrupted build goes on where it stopped. The file is keyed by split, range and a
    fingerprint of how pictures and features are made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scenes = tuple(sample_scene(seed, atlas, split=split) for seed in range(first, first + count))
    cells, channels = model.tower.patches_per_side**2, model.tower.hidden_size
    stem = f"{split}-{first}-{count}-{fingerprint(scenes[0], atlas, model)}"
    data, done_file = folder / f"{stem}.f16", folder / f"{stem}.json"
    done = json.loads(done_file.read_text())["done"] if done_file.exists() else 0
    shape = (count, cells, channels)
    if not data.exists():
        np.memmap(data, dtype=np.float16, mode="w+", shape=shape)
    features_NPF = np.memmap(data, dtype=np.float16, mode="r+", shape=shape)
    for start, part in _tower_batches(scenes[done:], atlas, model):
        features_NPF[done + start : done + start + len(part)] = part
        if start // BATCH % 16 == 0 or done + start + len(part) == count:
            features_NPF.flush()
            done_file.write_text(json.dumps({"done": done + start + len(part)}))
    return SceneFeatures(scenes, np.memmap(data, dtype=np.float16, mode="r", shape=shape))


def fingerprint(scene: Scene, atlas: Atlas, model: CaptionModel) -> str:
    """A hash of one scene's pixels, the pictures it is made with, and the tower's weights."""
    digest = hashlib.sha256(scene_tiles([scene], atlas, model.config).numpy().tobytes())
    for vendor in atlas.vendors:
        digest.update(vendor.encode())
        for name in atlas.names:
            digest.update(atlas.picture(vendor, name).tobytes())
    for value in cast("nn.Module", model.tower).state_dict().values():
        digest.update(value.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _tower_batches(
    scenes: tuple[Scene, ...], atlas: Atlas, model: CaptionModel
) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(scenes), BATCH):
        tiles = scene_tiles(scenes[start : start + BATCH], atlas, model.config)
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16):
            features = model.tower(model.tower.normalise(tiles.to(model.device)))
        yield start, features.to("cpu", torch.float16).numpy()

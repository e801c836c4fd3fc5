"""A tiny model after some steps of Stage I, and configurations of Stage II that begin with it."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from rediff_model.config import VisionConfig
from rediff_model.vision.efficientnet import FEATURE_CHANNELS, STRIDE, EfficientNetTower
from training.config import SceneTraining
from training.scenes.new_model import SceneRun, prepare
from training.scenes.stage1 import run as run_stage1
from training.scenes.stage2 import SceneCorrection


def train_tiny(folder: Path) -> SceneRun:
    """Train for a hundred steps; the run's folder holds `checkpoint`."""
    torch.manual_seed(0)
    vision = VisionConfig(
        tower="efficientnet_lite0",
        image_size=6 * STRIDE,
        patch_size=STRIDE,
        hidden_size=FEATURE_CHANNELS,
    )
    tower = EfficientNetTower(vision).state_dict()
    save_file({name: value.contiguous() for name, value in tower.items()}, folder / "tower")
    config = SceneTraining.model_validate(
        {
            "tower": folder / "tower",
            "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2},
            "data": {"scenes": 4, "validation_scenes": 2},
            "pictures": 2,
            "align_steps": 2,
            "phases": [{"steps": 100, "replace": 0.3, "clean_weight": 0.1}],
            "evaluate_every": 100,
            "save_every": 100,
            "precision": "no",
        }
    )
    checkpoint = run_stage1(config, folder)
    return prepare(config.model_copy(update={"start_from": checkpoint}), folder)


def configuration(stage1: SceneRun, **changes: object) -> SceneCorrection:
    values = {
        "start_from": stage1.folder / "checkpoint",
        "data": {"scenes": 4, "validation_scenes": 2},
        "drafts": {"scenes": 4, "tokens_per_step": (8, 64)},
        "pictures": 2,
        "phases": [{"steps": 100}],
        "warmup": 5,
        "evaluate_every": 100,
        "save_every": 100,
        "precision": "no",
    }
    return SceneCorrection.model_validate(values | changes)

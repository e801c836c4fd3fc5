"""The SigLIP tower and the projector against features of the official implementation."""

from typing import Any

import pytest
import torch
from goldens_dir import GOLDENS, read_json
from safetensors.torch import load_file
from torch import Tensor

from rediff_model.config import VisionConfig
from rediff_model.vision.siglip import SiglipTower, build_projector

META = read_json("siglip/meta.json")
CASES = [name for name, case in META.items() if "checkpoint" in case]


def tower_config(values: dict[str, Any]) -> VisionConfig:
    known = VisionConfig.__dataclass_fields__.keys() & values.keys()
    return VisionConfig(tower="siglip", **{key: values[key] for key in known})


def load_tower(case: dict[str, Any]) -> SiglipTower:
    """Load all of the published tower but the last layer and the head; nothing may be missing."""
    config = tower_config(case["config"])
    tower = SiglipTower(config)
    dropped = ("vision_model.head.", f"vision_model.encoder.layers.{config.num_hidden_layers - 1}.")
    weights = {
        f"vision_tower.{name}": value
        for name, value in load_file(GOLDENS / "siglip" / case["checkpoint"]).items()
        if not name.startswith(dropped)
    }
    tower.load_state_dict(weights)
    return tower.eval()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    recorded: dict[str, Any] = META[request.param]
    return recorded


@pytest.fixture
def recorded(case: dict[str, Any]) -> dict[str, Tensor]:
    return load_file(GOLDENS / "siglip" / case["io"])


def test_golden_features(case: dict[str, Any], recorded: dict[str, Tensor]) -> None:
    tower = load_tower(case)
    with torch.inference_mode():
        features = tower(recorded["pixel_values"])
    assert features.shape == (len(features), tower.patches_per_side**2, tower.hidden_size)
    torch.testing.assert_close(features, recorded["features"], atol=5e-5, rtol=0)


def test_golden_projector(case: dict[str, Any], recorded: dict[str, Tensor]) -> None:
    weights = load_file(GOLDENS / "siglip" / case["projector"])
    outer, inner = weights["projector.0.weight"].shape
    projector = build_projector(inner, outer)
    projector.load_state_dict(
        {name.removeprefix("projector."): value for name, value in weights.items()}
    )
    with torch.inference_mode():
        projected = projector(recorded["features"])
    torch.testing.assert_close(projected, recorded["projected"], atol=5e-5, rtol=0)


def test_golden_real_defaults() -> None:
    assert tower_config(META["real_defaults"]) == VisionConfig()

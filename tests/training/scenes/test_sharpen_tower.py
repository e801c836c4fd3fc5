"""The tower is sharpened on the labels of the cells: what changes, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from scene_samples import descend, tiny_training

from training.scenes import sharpen_tower
from training.scenes.cell_labels import DenseObjective
from training.scenes.features import as_map, load_or_build, load_or_build_maps
from training.scenes.new_model import prepare
from training.scenes.stage1 import run

if TYPE_CHECKING:
    from torch import nn

    from training.config import SceneTraining

SHIPPED = Path("rediff_model/checkpoints/embedded-384")


def tiny(**changes: object) -> SceneTraining:
    return tiny_training(SHIPPED, 4, **{"tower_steps": 2, **changes})


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharpen_tower, "HEAD_STEPS", 2)
    monkeypatch.setattr(sharpen_tower, "PICTURES", 2)


def test_only_late_products_of_the_tower_change_and_the_checkpoint_has_them(tmp_path: Path) -> None:
    checkpoint = run(tiny(), tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (SHIPPED, checkpoint))
    assert before.keys() == after.keys()
    tower = [name for name in before if "vision_tower" in name]
    changed = {name for name in tower if not torch.equal(before[name], after[name])}
    late = {name for name in tower if ".stages.5." in name or ".stages.6." in name}
    assert changed <= {name for name in late if ".depthwise." not in name}
    assert len(changed) > len(late) / 3
    cache = tmp_path / "features"
    names = sorted(path.name for path in cache.glob("train-*.json"))
    assert [name.startswith("train-maps-0-4-") for name in names] == [False, True]
    again = prepare(tiny(start_from=checkpoint), tmp_path / "again")
    load_or_build("train", 0, 4, again.atlas, again.model, cache)
    assert sorted(path.name for path in cache.glob("train-*.json")) == names


def test_features_of_kept_maps_are_those_of_the_pictures(tmp_path: Path) -> None:
    scene_run = prepare(tiny(), tmp_path / "run")
    atlas, model = scene_run.atlas, scene_run.model
    maps = load_or_build_maps("train", 0, 3, atlas, model, tmp_path / "maps")
    assert maps.features_NPF.shape == (3, 24 * 24, 112)
    made = load_or_build("train", 0, 3, atlas, model, tmp_path / "made", maps)
    seen = load_or_build("train", 0, 3, atlas, model, tmp_path / "seen")
    np.testing.assert_allclose(made.features_NPF, seen.features_NPF, atol=0.05)
    kept = [{path.name for path in (tmp_path / name).iterdir()} for name in ("made", "seen")]
    assert kept[0] == kept[1]


def test_maps_are_kept_whatever_the_late_stages_are(tmp_path: Path) -> None:
    scene_run = prepare(tiny(), tmp_path / "run")
    load_or_build_maps("train", 0, 2, scene_run.atlas, scene_run.model, tmp_path / "maps")
    with torch.no_grad():
        for value in scene_run.model.tower.late_stages().parameters():  # type: ignore[attr-defined]
            value.add_(1)
    load_or_build_maps("train", 0, 2, scene_run.atlas, scene_run.model, tmp_path / "maps")
    assert len(list((tmp_path / "maps").glob("*.f16"))) == 1


def test_what_the_heads_ask_for_reaches_the_late_stages(tmp_path: Path) -> None:
    scene_run = prepare(tiny(), tmp_path / "run")
    maps = load_or_build_maps("train", 0, 4, scene_run.atlas, scene_run.model, tmp_path / "maps")
    assert as_map(maps.rows(np.arange(1))).shape == (1, 112, 24, 24)
    tower: Any = scene_run.model.tower
    dense = DenseObjective(
        cast("nn.Module", scene_run.model.model.mm_projector), 192, len(scene_run.atlas.names)
    )
    objective = sharpen_tower.SharpObjective(tower, dense)
    tower.late_stages().requires_grad_(True)
    batch = sharpen_tower.batches_of(scene_run, maps)(0, 0)
    trained = [value for value in objective.parameters() if value.requires_grad]
    losses = descend(lambda: objective(batch)[0], trained, 3e-3, 8)
    assert losses[-1] < 0.6 * losses[0]


def test_a_new_model_has_no_projector_to_read() -> None:
    with pytest.raises(ValidationError, match="tower_steps 2 needs start_from"):
        tiny(start_from=None)

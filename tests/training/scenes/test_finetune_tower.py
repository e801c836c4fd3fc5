"""A tower that looks closer and tells classes: what it begins with and what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from scene_samples import descend, tiny_training

from rediff_model.checkpoint import read_config
from rediff_model.model import Captioner
from rediff_model.vision.efficientnet import FEATURE_CHANNELS, SHARE_SCALE, CellClassifier
from training.scenes import add_classifier, distil_projector, finetune_tower
from training.scenes.cell_labels import LOOKS, DenseBatch
from training.scenes.features import SceneFeatures, as_map, load_or_build, load_or_build_maps
from training.scenes.imagenet import IMAGENET, Classifier, Plates
from training.scenes.new_model import SceneRun, prepare
from training.scenes.stage1 import run
from training.stickers.atlas import Atlas

if TYPE_CHECKING:
    from torch import nn

    from training.config import SceneTraining

SHIPPED = Path("rediff_model/checkpoints/embedded-384")
SCENES = 8


def tiny(**changes: object) -> SceneTraining:
    sight_of_576 = {"image_size": 576, "steps": 2}
    return tiny_training(SHIPPED, SCENES, **{"sight": sight_of_576, **changes})


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil_projector, "READ_STEPS", 3)
    monkeypatch.setattr(distil_projector, "READ_PICTURES", 16)
    monkeypatch.setattr(finetune_tower, "PICTURES", 2)
    monkeypatch.setattr(finetune_tower, "GUISES", 2)
    monkeypatch.setattr(finetune_tower, "words", unsaid)


def unsaid(atlas: Atlas, *_: object) -> torch.Tensor:
    return torch.zeros(len(atlas.vendors) * len(atlas.names), 1000)


@pytest.fixture
def scene_run(tmp_path: Path) -> SceneRun:
    return prepare(tiny(), tmp_path / "run")


def test_a_wider_model_begins_with_what_the_other_knew(scene_run: SceneRun) -> None:
    old = Captioner.load(SHIPPED, dtype=torch.float32).model
    values, before = scene_run.model.state_dict(), old.state_dict()
    first = "model.mm_projector.0.weight"
    assert torch.equal(values[first][:, :FEATURE_CHANNELS], before[first])
    assert not values[first][:, FEATURE_CHANNELS:].any()
    other = {name for name in before if not torch.equal(values[name], before[name])} - {first}
    assert other
    assert all(".stages.5." in name or ".stages.6." in name for name in other)
    vision = scene_run.model_config.vision
    assert (vision.image_size, vision.patch_size, vision.patches_per_side) == (576, 96, 6)
    assert vision.hidden_size == FEATURE_CHANNELS + len(scene_run.atlas.names)


def test_the_rows_of_a_name_are_those_of_its_classes(scene_run: SceneRun) -> None:
    tower: Any = scene_run.model.tower
    names, imagenet = scene_run.atlas.names, Classifier.load()
    seen_TC = torch.rand((3, 1280), generator=torch.Generator().manual_seed(0))
    logits_TK, out_TI = tower.classifier.read(seen_TC), imagenet.out(seen_TC)
    for number, name in enumerate(names):
        wanted = torch.zeros(3)
        if name in IMAGENET:
            wanted = out_TI[:, list(IMAGENET[name])].amax(1)
        torch.testing.assert_close(logits_TK[:, number], wanted, msg=name)
    assert (logits_TK[:, -1] == add_classifier.NOTHING_BIAS).all()


def test_shares_are_of_a_cell() -> None:
    classifier = CellClassifier((1, 3))
    assert classifier.rows.out_features == 5
    config = add_classifier.closer(read_config(SHIPPED).vision, 576, ("zebra", "rose"))
    tower: Any = Captioner.load(SHIPPED).model.tower
    assert config.class_rows == (1, 1)
    tower.config = config
    logits_NHWK = torch.zeros(1, 18, 18, 3)
    logits_NHWK[..., 2] = 30.0
    logits_NHWK[0, :3, 3:6, 0] = 60.0
    logits_NHWK[0, 3, 0, 1] = 60.0
    shares_NPK = tower.shares(logits_NHWK)[0]
    assert shares_NPK.shape == (36, 2)
    assert shares_NPK[1].tolist() == pytest.approx([1, 0])
    assert shares_NPK[6].tolist() == pytest.approx([0, 1 / 9])
    assert shares_NPK.sum().item() == pytest.approx(10 / 9)


def test_features_hold_the_shares_beside_the_rest(scene_run: SceneRun) -> None:
    tower: Any = scene_run.model.tower
    pixels = torch.rand((1, 3, 576, 576), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps, features = tower.maps(pixels), tower(pixels)
        shares = tower.shares(tower.classifier(maps["stride32"]))
        placed = tower.placed(maps)
    torch.testing.assert_close(features[..., FEATURE_CHANNELS:], SHARE_SCALE * shares)
    torch.testing.assert_close(features[..., :FEATURE_CHANNELS], placed)
    assert features.shape == (1, 36, scene_run.model_config.vision.hidden_size)


def test_every_name_gets_another_names_picture() -> None:
    atlas = Atlas.load()
    other, another = distil_projector.shuffled(atlas, 0), distil_projector.shuffled(atlas, 1)
    owner = {id(picture): name for (_, name), picture in atlas.pictures.items()}
    for vendor in atlas.vendors:
        given = [owner[id(other.picture(vendor, name))] for name in atlas.names]
        assert sorted(given) == sorted(atlas.names)
        assert all(name != own for name, own in zip(given, atlas.names, strict=True))
    assert other.pictures != another.pictures


def test_imagenet_is_asked_about_every_picture() -> None:
    atlas = Atlas.load(vendors=Atlas.load().vendors[:1])
    names = tuple(IMAGENET)[::6]
    few = Atlas(names, atlas.vendors, {key: atlas.pictures[key] for key in atlas.pictures})
    tower: Any = Captioner.load(SHIPPED, dtype=torch.float32).model.tower
    said = WORDS(few, tower, Classifier.load())
    assert said.shape == (len(names), 1000)
    right = [
        int(logits.argmax()) in IMAGENET[name] for name, logits in zip(names, said, strict=True)
    ]
    assert sum(right) >= 2  # of a thousand classes


WORDS = finetune_tower.words


def test_the_tower_learns_names_and_words_and_its_known_rows_stay(
    scene_run: SceneRun, tmp_path: Path
) -> None:
    tower: Any = scene_run.model.tower
    maps = load_or_build_maps(
        "train", 0, SCENES, scene_run.atlas, scene_run.model, tmp_path / "maps"
    )
    assert as_map(maps.rows(np.arange(1))).shape == (1, 112, 36, 36)
    words = torch.randn((1, 840, 1000), generator=torch.Generator().manual_seed(0))
    batch = finetune_tower.sight_batches(scene_run, [maps], words)(0, 0)
    objective = finetune_tower.SightObjective(tower, Classifier.load().out)
    tower.requires_grad_(True)
    late = [*tower.late_stages().parameters()]
    losses = descend(lambda: objective(batch)[0] / batch.weight(), late, 1e-3, 6)
    assert losses[-1] < losses[0] - 0.5
    _, parts = objective(batch)
    assert parts["right_plate"][1] == len(batch.plates.name_S)
    stickers = sum(len(scene.stickers) for scene in maps.scenes)
    assert len(Plates.of(maps.scenes, 18, scene_run.atlas).name_S) == stickers
    tower.zero_grad(set_to_none=True)
    known, classes = add_classifier.known_rows(scene_run.atlas.names)
    before = tower.classifier.rows.weight.detach().clone()
    finetune_tower.teach_tower(scene_run, [scene_run.atlas], [maps])
    after = tower.classifier.rows.weight
    half = Classifier.load().out.weight[classes].half().float()
    assert torch.equal(after[known], half)
    unknown = [row for row in range(len(after)) if row not in set(known.tolist())]
    assert not torch.equal(after[unknown], before[unknown])


def test_colours_are_asked_of_the_late_stages_but_not_names(
    scene_run: SceneRun, tmp_path: Path
) -> None:
    """Names are the classifier's: these layers shall not draw the other channels towards them."""
    tower: Any = scene_run.model.tower
    maps = load_or_build_maps("train", 0, 4, scene_run.atlas, scene_run.model, tmp_path / "maps")
    finetune_tower.measure(tower, maps)
    batch = finetune_tower.sight_batches(scene_run, [maps], torch.zeros(1, 840, 1000))(0, 0)
    looks = finetune_tower.SightObjective(tower, Classifier.load().out).looks
    tower.late_stages().requires_grad_(True)
    weights = [*looks.parameters(), *tower.late_products()]

    def told() -> Any:
        deep = tower.deepened(as_map(batch.maps_BTC))
        return looks(DenseBatch(tower.placed(deep), batch.labels_BTK))

    losses = descend(lambda: told()[0], weights, 3e-3, 12)
    _, parts = told()
    assert losses[-1] < 0.7 * losses[0]
    assert [*parts] == [f"right_{kind}" for kind in LOOKS]
    assert parts["right_backdrop"][1] == batch.labels_BTK.shape[0] * 36
    assert all(value.grad is not None and value.grad.any() for value in weights[-2:])


def test_doubts_leave_shares(scene_run: SceneRun) -> None:
    shares = torch.zeros(2, 36, 120)
    shares[:, :, 7] = 0.8
    doubted = distil_projector.doubted(shares, np.random.default_rng(0))
    assert (doubted >= 0).all()
    total = doubted.sum(-1)
    assert total.max() <= 0.8 + 1e-5
    assert total.min() > 0.3
    assert (doubted.argmax(-1) == 7).float().mean() > 0.8
    assert doubted[..., 7].min() < 0.3


def test_names_are_read_off_the_classes_alone(scene_run: SceneRun) -> None:
    """Of made-up features whose trunk tells another name than the classes do half of the time."""
    old = Captioner.load(SHIPPED, dtype=torch.float32).model
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn((SCENES, 36, FEATURE_CHANNELS), generator=generator).half().numpy()
    features = np.zeros((SCENES, 36, FEATURE_CHANNELS + 120), np.float16)
    other = np.ones((2, 36, FEATURE_CHANNELS + 120), np.float16)
    scenes: Any = (None,) * SCENES
    seen: list[torch.Tensor] = []
    projector = cast("nn.Module", scene_run.model.model.mm_projector)
    projector.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    distil_projector.teach_projector(
        scene_run, old, SceneFeatures(scenes, features), SceneFeatures(scenes, wanted), [(3, other)]
    )
    trunk = torch.cat(seen)[..., :FEATURE_CHANNELS]
    mixed = trunk.flatten(1).mean(1)
    assert set(mixed.tolist()) == {0.0, 1.0}
    assert mixed.mean() < 0.5
    assert not torch.cat(seen)[..., FEATURE_CHANNELS:].any()


def test_a_run_goes_through_and_goes_on(tmp_path: Path) -> None:
    checkpoint = run(tiny(phases=[]), tmp_path / "run")
    config = read_config(checkpoint)
    assert config.vision.image_size == 576
    assert sum(config.vision.class_rows) > 120
    values = load_file(checkpoint / "model.safetensors")
    assert values["model.vision_tower.classifier.rows.weight"].dtype == torch.float16
    kept = sorted(path.name for path in (tmp_path / "features").glob("*.json"))
    assert not (tmp_path / "run" / "captions").exists()
    again = run(tiny(start_from=checkpoint, sight=None, phases=[{"steps": 1}]), tmp_path / "again")
    assert read_config(again) == config
    assert sorted(path.name for path in (tmp_path / "features").glob("*.json")) == kept
    scene_run = prepare(tiny(start_from=checkpoint, sight=None), tmp_path / "third")
    seen = load_or_build("train", 0, 2, scene_run.atlas, scene_run.model, tmp_path / "seen")
    assert seen.features_NPF.shape == (2, 36, FEATURE_CHANNELS + 120)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"start_from": None}, "sight needs start_from"),
        ({"tower_steps": 3}, "no tower_steps, got 3"),
        ({"sight": {"image_size": 0}}, "greater than 0"),
        ({"sight": None, "phases": []}, "phases is empty"),
    ],
)
def test_a_wrong_configuration_is_named(changes: dict[str, object], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        tiny(**changes)

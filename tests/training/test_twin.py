"""The autoregressive twin, in seconds, through the code that trains and runs the real one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scene_samples import descend
from torch import nn

from rediff_model.config import VisionConfig
from rediff_model.vision.efficientnet import FEATURE_CHANNELS, STRIDE, EfficientNetTower
from training.config import TrainConfigError
from training.scenes.canvases import END_SLOT, NOWHERE
from training.scenes.features import SceneFeatures
from training.stickers.sample import sample_scene
from training.twin import __main__ as command
from training.twin.model import PROJECTOR, Twin, save
from training.twin.objective import next_token_accuracy
from training.twin.train import (
    TwinTraining,
    caption_batch,
    mix_of,
    prepare_twin,
    twin_objective,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from training.scenes.new_model import SceneRun
    from training.scenes.objective import SceneBatch

STOP = 5


@pytest.fixture(scope="module")
def tower_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tower with random weights: what it sees is arbitrary but fixed."""
    torch.manual_seed(0)
    vision = VisionConfig("efficientnet_lite0", 6 * STRIDE, STRIDE, FEATURE_CHANNELS)
    tower = EfficientNetTower(vision)
    path = tmp_path_factory.mktemp("tower") / "tower.safetensors"
    save_file({name: value.contiguous() for name, value in tower.state_dict().items()}, path)
    return path


def tiny(tower: Path, **changes: object) -> dict[str, object]:
    values = {
        "tower": str(tower),
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2},
        "data": {"scenes": 4, "validation_scenes": 2},
        "pictures": 2,
        "align_steps": 4,
        "phases": [{"steps": 6, "place_weight": 1.0}],
        "evaluate_every": 6,
        "save_every": 6,
        "precision": "no",
    }
    return values | changes


@pytest.fixture(scope="module")
def scene_run(tower_file: Path, tmp_path_factory: pytest.TempPathFactory) -> SceneRun:
    config = TwinTraining.model_validate(tiny(tower_file))
    made = prepare_twin(config, tmp_path_factory.mktemp("run"))
    torch.manual_seed(1)
    for name, value in made.model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            nn.init.normal_(value, std=0.3)
    return made


@pytest.fixture(scope="module")
def batch(scene_run: SceneRun) -> SceneBatch:
    """Two captions of each of four scenes, with features that tell the scenes apart."""
    scenes = tuple(sample_scene(seed, scene_run.atlas) for seed in range(4))
    drawn = np.random.default_rng(0).normal(size=(4, 36, FEATURE_CHANNELS)).astype(np.float16)
    mix = mix_of(scene_run.config.phases[0])
    features = SceneFeatures(scenes, drawn)
    return caption_batch(scene_run, features, np.arange(4), 2, mix, np.random.default_rng(0))


@pytest.fixture(scope="module")
def twin(scene_run: SceneRun, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    folder = tmp_path_factory.mktemp("twin") / "checkpoint"
    save(scene_run.model, scene_run.tokenizer, {"steps": 0}, folder)
    return Twin.load(folder)


def random_prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(20, 32, generator=generator) for _ in range(6)]


def test_inputs_are_one_token_behind_and_only_the_first_stop_counts(
    scene_run: SceneRun, batch: SceneBatch
) -> None:
    length = batch.targets_NC.shape[1]
    assert scene_run.tokenizer.decode(batch.inputs_NC[:, 0].tolist()) == "\n\n" * 8
    torch.testing.assert_close(batch.inputs_NC[:, 1:], batch.targets_NC[:, :-1])
    for row in range(len(batch.targets_NC)):
        words = int((batch.slots_NC[row] != END_SLOT).sum())
        assert batch.targets_NC[row, words] == STOP
        assert batch.weights_NC[row].tolist() == [1.0] * (words + 1) + [0.0] * (length - words - 1)
    placed_NC = batch.places_NC != NOWHERE
    assert placed_NC.any()
    named_NC = batch.slots_NC.roll(1, dims=1) > 0
    assert named_NC[placed_NC].all()


def test_training_logits_are_those_of_transformers(
    scene_run: SceneRun, batch: SceneBatch, twin: Twin
) -> None:
    with torch.no_grad():
        logits_TV = twin_objective(scene_run).logits(batch.features_BPF, batch.inputs_NC)
        prompt_BPD = torch.stack([twin.prompt(one_PF) for one_PF in batch.features_BPF])
        caption_NCD = twin.language.get_input_embeddings()(batch.inputs_NC)
        whole_NLD = torch.cat((prompt_BPD.repeat_interleave(2, 0)[:, :-1], caption_NCD), dim=1)
        other_NLV = twin.language(inputs_embeds=whole_NLD).logits
    rows = batch.inputs_NC.shape[1]
    torch.testing.assert_close(logits_TV, other_NLV[:, -rows:].flatten(0, 1), atol=1e-4, rtol=1e-4)


def test_generation_with_a_cache_is_that_without(twin: Twin) -> None:
    given = random_prompts()
    cached = twin.generate(given, 24)
    assert cached == twin.generate(given, 24, use_cache=False)
    assert len({tuple(ids) for ids in cached}) > 1


def test_a_batch_says_what_each_prompt_does_and_nothing_after_the_stop(twin: Twin) -> None:
    given = random_prompts()
    with torch.no_grad():
        head = twin.language.lm_head.weight
        kept = head[STOP].clone()
        head[STOP] *= 3  # Some captions end early now, others do not.
    together = twin.generate(given, 24)
    alone = [twin.generate([prompt], 24)[0] for prompt in given]
    with torch.no_grad():
        head[STOP] = kept
    assert together == alone
    assert all(STOP not in ids for ids in together)
    assert len({len(ids) for ids in together}) > 1


def test_the_loss_falls_and_the_picture_is_read(
    tower_file: Path, batch: SceneBatch, tmp_path: Path
) -> None:
    config = TwinTraining.model_validate(tiny(tower_file))
    objective = twin_objective(prepare_twin(config, tmp_path))
    before = next_token_accuracy(objective, batch)
    losses = descend(
        lambda: objective(batch)[0] / batch.weight(), [*objective.parameters()], 1e-2, 60
    )
    after = next_token_accuracy(objective, batch)
    assert losses[-1] < 0.2 * losses[0]
    assert after["slot_mean"] > 0.9 > 0.2 > before["slot_mean"]
    assert after["shuffled_loss_gap"] > 0.5


def test_a_run_ends_in_a_checkpoint_and_goes_on_where_it_stopped(
    tower_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "twin.yaml", tmp_path / "runs" / "twin"
    file.write_text(json.dumps(tiny(tower_file)), encoding="utf-8")
    arguments = ["--config", str(file), "--out", str(out)]
    command.main(arguments)
    checkpoint = out / "checkpoint"
    assert capsys.readouterr().out == f"{checkpoint}\n"
    first = load_file(checkpoint / "model.safetensors") | load_file(checkpoint / PROJECTOR)
    average = load_file(out / "captions" / "state" / "average.safetensors")
    average = {name.removeprefix("captioner."): value for name, value in average.items()}
    stored = {name if name in average else f"model.{name}": value for name, value in first.items()}
    assert stored.keys() == average.keys() - {"places.weight", "places.bias"}
    for name, value in stored.items():
        torch.testing.assert_close(value, average[name], rtol=0, atol=0)
    assert Twin.load(checkpoint).generate([torch.zeros(5, 32)], 3)
    command.main([*arguments, "--set", "phases=[{steps: 8, place_weight: 1.0}]"])
    assert json.loads((checkpoint / "training.json").read_text())["steps"] == 8
    steps = [json.loads(line) for line in (out / "captions" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "slot_mean" in row] == [6, 8]
    assert not torch.equal(
        load_file(checkpoint / PROJECTOR)["image_newline"], first["image_newline"]
    )


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"start_from": "x", "model": {}, "align_steps": 0}, "start_from is not for a twin, got x"),
        ({"loss": "official"}, "loss must be scenes for a twin, got 'official'"),
        ({"model": {"qk_norm": False}}, "model.qk_norm must be true"),
        ({"phases": [{"steps": 5, "cut": 0.4}]}, "a twin's phase has no cut"),
    ],
)
def test_what_only_a_diffusion_model_has_is_refused(
    tmp_path: Path, changes: dict[str, object], fault: str
) -> None:
    path = tmp_path / "twin.yaml"
    path.write_text(json.dumps(tiny(tmp_path, **changes)), encoding="utf-8")
    with pytest.raises(TrainConfigError, match=fault):
        TwinTraining.read(path)


def test_a_folder_without_a_projector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no projector\.safetensors"):
        Twin.load(tmp_path)

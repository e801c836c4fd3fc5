"""Stage I on scenes, in seconds, through the code that trains the real one."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rediff_model.chat_template import DEFAULT_QUESTION
from rediff_model.checkpoint import SHIPPED
from rediff_model.config import Preferences, VisionConfig
from rediff_model.files.atomic import write_json
from rediff_model.model import Captioner
from rediff_model.sampling.params import SamplerSettings
from rediff_model.sampling.sampler import generate
from rediff_model.vision.efficientnet import FEATURE_CHANNELS, STRIDE, EfficientNetTower
from training.config import SceneTraining, TrainConfigError
from training.loop.run_folder import claim
from training.scenes.canvases import RELATION_SLOTS, Mix
from training.scenes.features import load_or_build
from training.scenes.new_model import SceneRun, prepare
from training.scenes.objective import SceneBatch, Text, slot_accuracy
from training.scenes.stage1 import run


@pytest.fixture(scope="module")
def tower_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tower with random weights: what it sees is arbitrary but fixed."""
    torch.manual_seed(0)
    tower = EfficientNetTower(
        VisionConfig(
            tower="efficientnet_lite0",
            image_size=6 * STRIDE,
            patch_size=STRIDE,
            hidden_size=FEATURE_CHANNELS,
        )
    )
    path = tmp_path_factory.mktemp("tower") / "tower.safetensors"
    save_file({name: value.contiguous() for name, value in tower.state_dict().items()}, path)
    return path


def tiny(tower: Path, **changes: object) -> SceneTraining:
    values = {
        "tower": tower,
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2},
        "data": {"scenes": 4, "validation_scenes": 2},
        "pictures": 2,
        "align_steps": 4,
        "phases": [{"steps": 6}, {"steps": 6, "replace": 0.4, "pair": 0.2, "clean_weight": 0.1}],
        "evaluate_every": 6,
        "save_every": 6,
        "precision": "no",
    }
    return SceneTraining.model_validate(values | changes)


@pytest.fixture(scope="module")
def scene_run(tower_file: Path, tmp_path_factory: pytest.TempPathFactory) -> SceneRun:
    return prepare(tiny(tower_file), tmp_path_factory.mktemp("run"))


def scene_batch(scene_run: SceneRun, folder: Path, mix: Mix | None = None) -> SceneBatch:
    features = load_or_build("train", 0, 4, scene_run.atlas, scene_run.model, folder)
    rng = np.random.default_rng(0)
    canvases = scene_run.canvases.build(features.scenes, 2, mix or Mix(), rng)
    return SceneBatch.of(features.rows(np.arange(4)), canvases)


def test_a_run_ends_in_a_checkpoint_that_captions(tower_file: Path, tmp_path: Path) -> None:
    checkpoint = run(
        tiny(tower_file, block_lengths=[8, 32], extra_refine_steps=3, preset="careful"),
        tmp_path / "run",
    )
    captioner = Captioner.load(checkpoint)
    assert captioner.config.preferences == Preferences((8, 32), 3, "careful")
    assert captioner.config.taught_prompts == (DEFAULT_QUESTION,)
    features = torch.zeros(37, 32)
    settings = SamplerSettings(tokens_per_step=32)
    [made] = generate(
        captioner.model, [captioner.prompt(features)], [settings], captioner.token_ids
    )
    assert made.steps >= 1
    assert isinstance(captioner.decode(made.ids), str)
    log = (tmp_path / "run" / "captions" / "log.jsonl").read_text().splitlines()
    assert any("slot_mean" in json.loads(line) for line in log)


def test_steps_may_ask_in_other_words(tower_file: Path, tmp_path: Path) -> None:
    asked = prepare(tiny(tower_file, other_prompts=0.5), tmp_path / "drawn")
    rng = np.random.default_rng(0)
    drawn = [asked.drawn_text(rng) for _ in range(40)]
    others = [text for text in drawn if text is not None]
    assert 10 < len(others) < 30
    assert len({text.after_Q.numpy().tobytes() for text in others}) > 5

    batch = scene_batch(asked, tmp_path)
    # A new model's layers are the identity: let it look at its prompt.
    for name, value in asked.model.named_parameters():
        if name.endswith(("o_proj.weight", "lm_head.weight")):
            torch.nn.init.normal_(value)
    texts = (None, Text.of(asked.codec, DEFAULT_QUESTION), Text.of(asked.codec, "caption this"))
    usual, same, other = (asked.objective(replace(batch, text=text))[0] for text in texts)
    assert torch.equal(usual, same)
    assert not torch.equal(usual, other)

    checkpoint = run(tiny(tower_file, other_prompts=0.5), tmp_path / "run")
    assert Captioner.load(checkpoint).config.taught_prompts == ()


def test_another_configuration_does_not_resume(tower_file: Path, tmp_path: Path) -> None:
    run(tiny(tower_file, phases=[{"steps": 1}]), tmp_path / "run")
    for changes, fault in (
        ({"optimiser": {"adamw": 1e-4}}, "another optimiser"),
        ({"model": {"hidden_size": 64, "heads": 2}}, "another model"),
    ):
        with pytest.raises(TrainConfigError, match=fault):
            run(tiny(tower_file, phases=[{"steps": 1}], **changes), tmp_path / "run")
    run(tiny(tower_file, phases=[{"steps": 1}], threads=1, save_every=1), tmp_path / "run")


def test_a_new_model_may_begin_with_a_projector_that_knows_the_labels(
    scene_run: SceneRun, tower_file: Path, tmp_path: Path
) -> None:
    before = run(tiny(tower_file, phases=[{"steps": 1}]), tmp_path / "before")
    own = prepare(tiny(tower_file), tmp_path / "own").model.state_dict()
    taken = prepare(tiny(tower_file, projector=before), tmp_path / "taken").model.state_dict()
    stored = load_file(before / "model.safetensors")
    projector = [name for name in stored if "mm_projector" in name]
    assert projector
    assert all(torch.equal(taken[name], stored[name]) for name in projector)
    assert not all(torch.equal(own[name], stored[name]) for name in projector)


SHAPE = {"hidden_size": 192, "intermediate_size": 512, "layers": 5, "heads": 6}


def test_checkpoints_of_the_package_go_by_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = load_file(SHIPPED / "embedded-384" / "model.safetensors")
    named = Path("embedded-384")
    new = tiny(named, projector=named, model=SHAPE)
    values = {"tower": named, "start_from": named, "phases": [{"steps": 1}]}
    further = SceneTraining.model_validate(values)
    for config, parts in ((new, ("vision_tower", "mm_projector")), (further, ("model.",))):
        state = prepare(config, tmp_path / "run").model.state_dict()
        taken = [name for name in stored if any(part in name for part in parts)]
        assert taken
        assert all(torch.equal(state[name], stored[name].float()) for name in taken)


def test_a_checkpoint_that_is_not_there_is_named_with_its_key(
    tower_file: Path, tmp_path: Path
) -> None:
    values = {"tower": tmp_path / "tower", "phases": [{"steps": 1}]}
    for changes, key in (
        ({}, "tower"),
        ({"start_from": tmp_path / "start_from"}, "start_from"),
        ({"tower": tower_file, "projector": tmp_path / "projector"}, "projector"),
    ):
        config = SceneTraining.model_validate(values | changes)
        with pytest.raises(TrainConfigError, match=rf"^{key}: no checkpoint folder at .*/{key},"):
            prepare(config, tmp_path)
    config = SceneTraining.model_validate(values | {"tower": "data/none.safetensors"})
    with pytest.raises(TrainConfigError, match=r"data/none\.safetensors holds no weights"):
        prepare(config, tmp_path)


@pytest.mark.parametrize("length", [1, 4, 127])
def test_a_canvas_that_cuts_captions_is_refused(
    length: int, tower_file: Path, tmp_path: Path
) -> None:
    config = tiny(tower_file, model={"hidden_size": 32, "heads": 2, "canvas_length": length})
    fault = rf"model\.canvas_length {length} cuts captions off: .* takes 128 tokens with its end"
    with pytest.raises(TrainConfigError, match=fault):
        run(config, tmp_path / "run")
    noted = tmp_path / "run" / "config.json"
    assert not noted.exists(), "a canvas that fits may be tried in the same folder"


def test_a_run_that_noted_the_folder_of_a_shipped_checkpoint_goes_on_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"tower": "embedded-384", "start_from": "runs/one", "phases": [{"steps": 1}]}
    named = SceneTraining.model_validate(values)
    monkeypatch.chdir(SHIPPED.parents[1])
    for way in (SHIPPED, Path("rediff_model") / "checkpoints"):
        config = SceneTraining.model_validate(values | {"tower": way / "embedded-384"})
        assert config == named
    noted = named.model_dump(mode="json")
    write_json(tmp_path / "config.json", noted | {"tower": "rediff_model/checkpoints/embedded-384"})
    with claim(tmp_path, named, ()):
        pass
    assert json.loads((tmp_path / "config.json").read_text()) == noted
    (tmp_path / "embedded-384").mkdir()
    monkeypatch.chdir(tmp_path)
    assert SceneTraining.model_validate(values).tower == Path("embedded-384")
    other = SceneTraining.model_validate(values | {"tower": SHIPPED / "embedded-384"})
    assert other.tower == SHIPPED / "embedded-384", "the name is another folder's here"


def test_training_logits_are_those_of_the_sampler(scene_run: SceneRun, tmp_path: Path) -> None:
    """The objective runs prompt and canvas apart; the whole sequence at once says the same."""
    batch = scene_batch(scene_run, tmp_path)
    for name, value in scene_run.model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            nn.init.normal_(value, std=0.3)
    with torch.no_grad():
        logits_TV = scene_run.objective.logits(batch.features_BPF, batch.inputs_NC)
        changed = batch.inputs_NC.clone()
        changed[1] = scene_run.model_config.stop_token_id
        other_TV = scene_run.objective.logits(batch.features_BPF, changed)
    first_TV, other_first_TV = logits_TV[:128], other_TV[:128]
    torch.testing.assert_close(first_TV, other_first_TV)
    assert not torch.allclose(logits_TV[128:256], other_TV[128:256])


@pytest.mark.parametrize("attention", ["prefix", "full"])
def test_where_a_named_sticker_is_can_be_learnt_from_the_middle_layer(
    tower_file: Path, tmp_path: Path, attention: str
) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "layers": 3, "heads": 2}
    phases = [{"steps": 6, "drill": 0.5, "place_weight": 30.0}]
    config = tiny(
        tower_file, model=shape | {"prefix_attention": attention}, phases=phases, align_steps=0
    )
    checkpoint = run(config, tmp_path / "run")
    assert all("places" not in name for name in load_file(checkpoint / "model.safetensors"))
    scene_run = prepare(config, tmp_path / "again")
    batch = scene_batch(scene_run, tmp_path, Mix(place_weight=30.0))
    optimizer = torch.optim.Adam(scene_run.objective.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss, parts = scene_run.objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, count = parts["loss_place"]
        losses.append((total / count).item())
    assert losses[0] > 1.5
    assert losses[-1] < 0.5 * losses[0]


def test_slot_accuracy_counts_what_is_right(scene_run: SceneRun, tmp_path: Path) -> None:
    batch = scene_batch(scene_run, tmp_path)
    result = slot_accuracy(scene_run.objective, batch, scene_run.model_config.mask_token_id)
    assert {"slot_name", "slot_colour", "slot_relation", "slot_mean"} <= result.keys()
    assert all(0 <= result[name] <= 1 for name in result if name.startswith(("slot_", "alone_")))


def test_a_relation_alone_is_right_if_the_logits_are(
    scene_run: SceneRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = scene_batch(scene_run, tmp_path)
    mask_id = scene_run.model_config.mask_token_id
    relation_NC = batch.slots_NC == RELATION_SLOTS[0]
    seen = []

    def logits(_features: torch.Tensor, inputs_NC: torch.Tensor) -> torch.Tensor:
        """Sure of the target, and of a wrong token wherever more than relations is masked."""
        seen.append(inputs_NC == mask_id)
        alone = bool((seen[-1] == relation_NC).all())
        said_NC = batch.targets_NC if alone else (batch.targets_NC + 1) % 100
        return nn.functional.one_hot(said_NC.flatten(), 820).float()

    monkeypatch.setattr(scene_run.objective, "logits", logits)
    result = slot_accuracy(scene_run.objective, batch, mask_id)
    assert result["alone_relation"] == 1
    assert result["slot_relation"] == 0
    assert len(seen) == 3


def test_cached_features_survive_an_interrupted_build(scene_run: SceneRun, tmp_path: Path) -> None:
    whole = load_or_build("train", 0, 4, scene_run.atlas, scene_run.model, tmp_path)
    expected = whole.features_NPF.copy()
    [progress] = tmp_path.glob("*.json")
    progress.write_text(json.dumps({"done": 2}))
    again = load_or_build("train", 0, 4, scene_run.atlas, scene_run.model, tmp_path)
    # Pictures 2 and 3 were computed again, in a batch of another size.
    np.testing.assert_allclose(again.features_NPF, expected, atol=0.05)
    assert json.loads(progress.read_text())["done"] == 4


@pytest.mark.parametrize("damage", ["cut", "gone", "note"])
def test_features_that_are_not_whole_are_computed_anew(
    damage: str, scene_run: SceneRun, tmp_path: Path
) -> None:
    def features() -> np.ndarray:
        return load_or_build(
            "train", 0, 4, scene_run.atlas, scene_run.model, tmp_path
        ).features_NPF.copy()

    expected = features()
    [data], [note] = tmp_path.glob("*.f16"), tmp_path.glob("*.json")
    if damage == "cut":
        os.truncate(data, 1000)
    elif damage == "gone":
        data.unlink()
    else:
        note.write_text("")
    assert np.array_equal(features(), expected)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("tower: x\nphases: []", "phases"),
        ("tower: x\nphases: [{steps: 5, replace: 1.5}]", "phases.0.replace"),
        ("tower: x\nphases: [{steps: 5}]\nlearning: 3", "learning"),
        ("[1, 2]", "must hold a mapping"),
        ("tower: [", "is not YAML"),
        ("seed: 1\ntower: x\nseed: 2", "the key seed is given twice, again in line 3"),
        (
            "tower: x\nphases: [{steps: 5, steps: 5}]",
            "the key steps is given twice, again in line 2",
        ),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(TrainConfigError, match=fault):
        SceneTraining.read(path)


def test_every_fault_has_one_line(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("tower: x\nphases: [{steps: 5, replace: 1.5}]\nema: 2")
    with pytest.raises(TrainConfigError) as raised:
        SceneTraining.read(path)
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == [
        "phases.0.replace",
        "ema",
    ]


def test_overrides_replace_single_values(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("tower: x\nphases: [{steps: 5}]\ndata: {scenes: 7}")
    config = SceneTraining.read(path, ["data.scenes=9", "optimiser.muon=0.01"])
    assert (config.data.scenes, config.optimiser.muon) == (9, 0.01)
    assert (config.phase_at(4).steps, config.phase_at(99).steps) == (5, 5)
    with pytest.raises(TrainConfigError, match="key=value"):
        SceneTraining.read(path, ["data.scenes"])
    with pytest.raises(TrainConfigError, match=r"'data\.scenes=\[9' is not YAML"):
        SceneTraining.read(path, ["data.scenes=[9"])
    with pytest.raises(TrainConfigError, match="the key scenes is given twice, again in line 1"):
        SceneTraining.read(path, ["data={scenes: 1, scenes: 2}"])


def test_precision_may_be_no_without_quotes(tmp_path: Path) -> None:
    """For YAML an unquoted no is false."""
    path = tmp_path / "train.yaml"
    path.write_text("tower: x\nphases: [{steps: 5}]\nprecision: no")
    assert SceneTraining.read(path).precision == "no"
    assert SceneTraining.read(path, ["precision=bf16"]).precision == "bf16"
    assert SceneTraining.read(path, ["precision=no"]).precision == "no"
    for wrong in ("yes", "0", "fp16"):
        with pytest.raises(TrainConfigError, match=r"precision: Input should be 'no' or 'bf16'"):
            SceneTraining.read(path, [f"precision={wrong}"])


def test_a_key_that_comes_with_a_merge_may_be_given_again(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("tower: x\nphases: [&first {steps: 5, cut: 0.2}, {<<: *first, steps: 7}]")
    assert [(phase.steps, phase.cut) for phase in SceneTraining.read(path).phases] == [
        (5, 0.2),
        (7, 0.2),
    ]

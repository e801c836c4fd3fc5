"""Stage II on scenes, at a size that trains in seconds, through all of its steps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scene_runs import configuration

from training.config import SceneTraining, TrainConfigError
from training.correction.experts.build import free_expert
from training.correction.experts.oracle import OracleExpert
from training.correction.experts.protocol import ExpertError, Unanswered
from training.correction.records import Draft, Verdict, read_drafts, write_records
from training.correction.selection import Corrected, read_corrected
from training.loop.run_folder import claim
from training.scenes.canvases import CLEAN, END_SLOT, MASKED, PAIR, REPLACED, Canvases, Mix
from training.scenes.draft_canvases import CorrectionCanvases, StateCanvases, join
from training.scenes.features import load_or_build
from training.scenes.new_model import SceneRun, prepare
from training.scenes.stage2 import FREE, collect, run
from training.stickers.grammar import compose
from training.stickers.sample import sample_scene

CANVAS = 128


def spoilt_drafts(stage1: SceneRun) -> list[Draft]:
    """Drafts as a good model makes them: captions with two tokens a draft wrong."""
    drafts = []
    for seed in range(4):
        scene = sample_scene(seed, stage1.atlas)
        for tokens in (8, 64):
            rng = np.random.default_rng((seed, tokens))
            ids = stage1.tokenizer.encode(compose(scene, rng).text).ids[: CANVAS - 1]
            for place in rng.choice(40, 2, replace=False).tolist():
                ids[place] = ids[place + 1]
            text = stage1.tokenizer.decode(ids)
            key = f"train-{seed}@{tokens}"
            drafts.append(
                Draft(key, "What?", "It.", tuple(ids), text, tokens, scene=("train", seed))
            )
    return drafts


def losses(folder: Path, part: str) -> list[float]:
    lines = map(json.loads, (folder / "captions" / "log.jsonl").read_text().splitlines())
    return [line[part] for line in lines if part in line]


def test_stage_1_learns_and_a_round_of_stage_2_learns_its_corrections(
    stage1: SceneRun, tmp_path: Path
) -> None:
    """Drafts that are there already are not drafted again, as after a killed run."""
    for part in ("loss_masked", "loss_replaced"):
        first, *_, last = losses(stage1.folder, part)
        assert last < 0.95 * first
    folder = tmp_path / "run" / "round-0"
    folder.mkdir(parents=True)
    write_records(folder / "drafts.jsonl", [draft.to_json() for draft in spoilt_drafts(stage1)])
    config = configuration(stage1)
    checkpoint = run(config, tmp_path / "run")
    assert checkpoint == folder / "checkpoint"

    counts = json.loads((folder / "counts.json").read_text())
    assert counts["correct"] == {"known": 0, "corrected": 8}
    assert counts["filter"]["kept"] == 8
    flagged = losses(folder, "loss_pair")
    assert flagged[-1] < 0.7 * flagged[0]
    assert not losses(folder, "loss_masked")
    assert not losses(folder, "loss_clean")

    rows = read_corrected(folder / "corrected.jsonl")
    before, after = (
        flagged_right(path, rows, tmp_path) for path in (config.start_from, checkpoint)
    )
    assert before < 0.2
    assert after > 0.8


def flagged_right(checkpoint: Path | None, rows: list[Corrected], folder: Path) -> float:
    """How many flagged tokens a model corrects, with the whole draft in view."""
    assert checkpoint is not None
    config = SceneTraining.model_validate(
        {"tower": "none", "start_from": checkpoint, "phases": [{"steps": 1}]}
    )
    scene_run = prepare(config, folder)
    features = load_or_build("train", 0, 4, scene_run.atlas, scene_run.model, folder / "features")
    right = total = 0
    for row in rows:
        inputs = torch.full((1, CANVAS), scene_run.model_config.stop_token_id)
        inputs[0, : len(row.ids)] = torch.tensor(row.ids)
        with torch.no_grad():
            logits_TV = scene_run.objective.logits(features.rows(np.array([row.scene[1]])), inputs)
        said = logits_TV.argmax(-1).tolist()
        right += sum(said[flag] == row.labels[flag] for flag in row.flags)
        total += len(row.flags)
    return right / total


def test_drafts_come_from_the_model_and_are_made_once(stage1: SceneRun, tmp_path: Path) -> None:
    config = configuration(stage1, drafts={"scenes": 2, "tokens_per_step": (64,)})
    scene_run = replace(prepare(config, tmp_path), folder=tmp_path)
    features = load_or_build("train", 0, 4, scene_run.atlas, scene_run.model, tmp_path / "features")
    collect(config, scene_run, features, range(2, 4))
    drafts = read_drafts(tmp_path / "drafts.jsonl")
    assert [draft.key for draft in drafts] == ["train-2@64", "train-3@64"]
    assert drafts[0].scene == ("train", 2)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert sum(counts["filter"].values()) == 2
    collect(config, scene_run, features, range(2, 4))
    assert read_drafts(tmp_path / "drafts.jsonl") == drafts
    again = json.loads((tmp_path / "counts.json").read_text())
    assert again["correct"] == {"known": 2}
    assert again["filter"] == counts["filter"]


def test_answers_that_come_late_do_not_change_a_training_that_has_begun(
    stage1: SceneRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed while it trains ends in the same weights, whatever the expert says by then."""
    folder = tmp_path / "run" / "round-0"
    folder.mkdir(parents=True)
    write_records(folder / "drafts.jsonl", [draft.to_json() for draft in spoilt_drafts(stage1)])
    judge = OracleExpert.judge

    def busy(self: OracleExpert, draft: Draft) -> Verdict:
        if draft.key in ("train-0@8", "train-3@64"):
            raise Unanswered("busy")
        return judge(self, draft)

    monkeypatch.setattr(OracleExpert, "judge", busy)
    monkeypatch.setattr("training.correction.verdicts.UNANSWERED", 0.5)
    config = configuration(stage1, phases=[{"steps": 2}])
    before = load_file(run(config, tmp_path / "run") / "model.safetensors")
    noted = (folder / "counts.json").read_text()
    assert json.loads(noted)["correct"] == {"known": 0, "corrected": 6, "unanswered": 2}
    monkeypatch.undo()
    shutil.rmtree(folder / "captions" / "state")
    after = load_file(run(config, tmp_path / "run") / "model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert (folder / "counts.json").read_text() == noted


def test_outcomes_are_counted_where_nothing_is_left_to_train_on(
    stage1: SceneRun, tmp_path: Path
) -> None:
    folder = tmp_path / "round-0"
    folder.mkdir()
    right = compose(sample_scene(2, stage1.atlas), np.random.default_rng(2)).text
    drafts = []
    for seed, text in enumerate(("", "no caption", right, "nor this")):
        ids = tuple(stage1.tokenizer.encode(text).ids)
        drafts.append(Draft(f"train-{seed}@8", "?", "It.", ids, text, 8, scene=("train", seed)))
    write_records(folder / "drafts.jsonl", [draft.to_json() for draft in drafts])
    fault = r"corrected\.jsonl: no corrected drafts to train on, of 4 drafts: 3 hopeless, 1 right"
    with pytest.raises(ValueError, match=fault):
        run(configuration(stage1, drafts={"scenes": 4, "tokens_per_step": (8,)}), tmp_path)


def test_a_missing_key_is_told_before_anything_is_drafted(
    stage1: SceneRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    config = configuration(stage1, expert={"kind": "openai", "model": "some-model"})
    with pytest.raises(ExpertError, match=r"expert\.model some-model .*OPENAI_API_KEY"):
        run(config, tmp_path)
    assert not (tmp_path / "round-0" / "drafts.jsonl").exists()


def test_a_control_goes_on_with_stage_1_without_drafts(stage1: SceneRun, tmp_path: Path) -> None:
    config = configuration(stage1, correction_share=0, phases=[{"steps": 2}], pictures=2)
    checkpoint = run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "round-0" / "drafts.jsonl").exists()
    began = load_file(stage1.folder / "checkpoint" / "model.safetensors")
    ended = load_file(checkpoint / "model.safetensors")
    assert began.keys() == ended.keys()
    head = next(name for name in ended if name.endswith("lm_head.weight"))
    assert not torch.equal(began[head], ended[head])


def test_another_configuration_does_not_resume(stage1: SceneRun, tmp_path: Path) -> None:
    noted = tmp_path / "config.json"

    def begin(expert: dict[str, Any] | None = None, **changes: Any) -> None:
        config = configuration(stage1, **changes | {"expert": expert or {}})
        with claim(tmp_path, config, (*FREE, *free_expert(tmp_path))):
            pass

    with pytest.raises(OSError, match="nowhere"), claim(tmp_path, configuration(stage1), FREE):
        raise OSError("nowhere")
    # What fails at once leaves no claim.
    assert not noted.exists()
    begin(correction_share=0.9)
    begin(correction_share=0.9, threads=1)
    assert json.loads(noted.read_text())["threads"] == 1
    with pytest.raises(TrainConfigError, match=r"another correction_share: 0\.9, now 0\.5"):
        begin(correction_share=0.5)
    noted.unlink()
    begin({"kind": "openai", "model": "mistyped"})
    begin({"kind": "openai", "model": "right"})
    (tmp_path / "verdicts.jsonl").write_text("{}\n")
    begin({"kind": "openai", "model": "right", "timeout": 5, "base_url": "http://127.0.0.1:9"})
    assert json.loads(noted.read_text())["expert"]["timeout"] == 5
    with pytest.raises(TrainConfigError, match=r"another expert\.model: right, now third"):
        begin({"kind": "openai", "model": "third"})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"start_from": None}, "start_from"),
        ({"rounds": 2}, "2 rounds of 4 scenes"),
        ({"expert": {"kind": "noisy", "dropped": 0.6, "wrong": 0.6}}, "must not exceed 1 together"),
        ({"expert": {"dropped": 0.2}}, r"dropped 0\.2 .* kind noisy, not to oracle"),
        ({"expert": {"timeout": 5}}, r"timeout 5\.0 belongs to the kind openai, not to oracle"),
        ({"projector": "here"}, "projector here is for a new model"),
        ({"align_steps": 3}, "align_steps 3 is for a new model"),
        ({"phases": [{"steps": 1, "opening": 0.1}]}, r"opening 0\.1 .* cut is 0"),
        ({"phases": [{"steps": 1, "replace": 0.6, "pair": 0.5}]}, "exceed 1 together"),
        ({"phases": [{"steps": 1, "replace_low": 0.3}]}, r"replace_low 0\.3 is above"),
        ({"optimiser": {"muon": float("inf")}}, "finite number"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"defects": ["pair_rate"]}, "defects pair_rate are for the loss default, got scenes"),
        ({"schedule": "cosine", "tail": 0.3}, "tail 0.3 is for the schedule linear_tail"),
        (
            {
                "states_share": 0.5,
                "drafts": {"scenes": 4, "states": 1},
                "expert": {"kind": "openai", "model": "m"},
            },
            r"states_share 0\.5 needs an expert that knows",
        ),
    ],
)
def test_a_wrong_configuration_is_named(
    stage1: SceneRun, changes: dict[str, object], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        configuration(stage1, **changes)


def rows_of_scenes(*seeds: int) -> list[Corrected]:
    return [
        Corrected(f"k{n}", ("train", seed), (10 + n, 11, 12), (10 + n, 21, 12), (1,))
        for n, seed in enumerate(seeds)
    ]


def deal(rows: list[Corrected], pictures: int, each: int) -> tuple[list[tuple[str, int]], Canvases]:
    dealer = CorrectionCanvases(rows, length=6, stop_id=5, weight=2.0)
    return dealer.deal(pictures, each, np.random.default_rng(0))


def test_corrections_train_their_segments_alone() -> None:
    scenes, canvases = deal(rows_of_scenes(7), 1, 1)
    assert scenes == [("train", 7)]
    assert canvases.inputs_NC.tolist() == [[10, 11, 12, 5, 5, 5]]
    assert canvases.targets_NC.tolist() == [[10, 21, 12, 5, 5, 5]]
    assert canvases.weights_NC.tolist() == [[0, 2, 0, 0, 0, 0]]
    assert canvases.parts_NC.tolist() == [[0, PAIR, 0, 0, 0, 0]]
    assert canvases.slots_NC.tolist() == [[0, 0, 0, END_SLOT, END_SLOT, END_SLOT]]


def test_drafts_of_one_scene_share_its_picture() -> None:
    scenes, canvases = deal(rows_of_scenes(7, 7, 9), 40, 2)
    pairs = canvases.inputs_NC[:, 0].reshape(40, 2).tolist()
    assert {seed for _, seed in scenes} == {7, 9}
    for (_, seed), pair in zip(scenes, pairs, strict=True):
        assert set(pair) == ({10, 11} if seed == 7 else {12})


def test_a_draft_as_long_as_the_canvas_or_longer_is_cut() -> None:
    row = Corrected("k", ("train", 7), tuple(range(10, 20)), tuple(range(10, 20)), (2, 8))
    _, canvases = deal([row], 1, 1)
    assert canvases.inputs_NC.tolist() == [[10, 11, 12, 13, 14, 15]]
    assert canvases.weights_NC.nonzero()[1].tolist() == [2]


def test_canvases_are_joined_in_order() -> None:
    _, one = deal(rows_of_scenes(7), 1, 1)
    _, other = deal(rows_of_scenes(7, 7), 1, 2)
    both = join(one, other)
    assert both.inputs_NC.shape == both.weights_NC.shape == both.slots_NC.shape == (3, 6)
    assert both.inputs_NC[0].tolist() == one.inputs_NC[0].tolist()


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no corrected drafts"):
        CorrectionCanvases([], length=6, stop_id=5)


def test_states_are_completed_to_what_the_draft_should_have_been() -> None:
    """Canvas 6, stop 5, mask 4; 11 should be 21."""
    state = (10, 11, 4, 4, 5, 4)
    row = Corrected("k", ("train", 7), (10, 11, 12), (10, 21, 12), (1,), (state,))
    dealer = StateCanvases([row], length=6, stop_id=5, mask_id=4)
    mix = Mix(clean_weight=0.25, replaced_weight=3.0, end_weight=0.5)
    scenes, canvases = dealer.deal(1, 2, mix, np.random.default_rng(0))
    assert scenes == [("train", 7)]
    assert canvases.inputs_NC.tolist() == [list(state)] * 2
    assert canvases.targets_NC.tolist() == [[10, 21, 12, 5, 5, 5]] * 2
    # Masked: 3 of 6, so 1 / .5; behind the caption half of that.
    assert canvases.weights_NC.tolist() == [[0.25, 3.0, 2.0, 1.0, 0.125, 1.0]] * 2
    assert canvases.parts_NC.tolist() == [[CLEAN, REPLACED, MASKED, MASKED, CLEAN, MASKED]] * 2


def test_drafts_without_states_have_nothing_to_complete() -> None:
    with pytest.raises(ValueError, match="no corrected drafts"):
        StateCanvases(rows_of_scenes(7), length=6, stop_id=5, mask_id=4)


def test_states_are_kept_with_drafts_and_trained(stage1: SceneRun, tmp_path: Path) -> None:
    """Right drafts and corrected ones whose labels are whole bring their states."""
    folder = tmp_path / "run" / "round-0"
    folder.mkdir(parents=True)
    drafts = spoilt_drafts(stage1)
    empty = (stage1.model_config.mask_token_id,) * CANVAS
    right = []
    for seed in range(4):
        scene = sample_scene(seed, stage1.atlas)
        text = compose(scene, np.random.default_rng(seed)).text
        ids = tuple(stage1.tokenizer.encode(text).ids[: CANVAS - 1])
        key = f"train-{seed}@1"
        right.append(Draft(key, "?", "It.", ids, text, 1, scene=("train", seed), states=(empty,)))
    write_records(folder / "drafts.jsonl", [draft.to_json() for draft in (*drafts, *right)])
    shape = {"scenes": 4, "tokens_per_step": (1, 8, 64), "states": 1}
    run(configuration(stage1, drafts=shape, states_share=0.5), tmp_path / "run")
    rows = {row.key: row for row in read_corrected(folder / "corrected.jsonl")}
    whole = [key for key, row in rows.items() if row.states]
    assert {key.partition("@")[2] for key in whole} == {"1"}
    assert all(rows[key].ids == rows[key].labels for key in whole)
    assert losses(folder, "loss_masked")
    assert losses(folder, "loss_pair")


def test_a_draft_keeps_canvases_on_its_way(stage1: SceneRun, tmp_path: Path) -> None:
    shape = {"scenes": 2, "tokens_per_step": (16,), "states": 3}
    config = configuration(stage1, drafts=shape)
    scene_run = replace(prepare(config, tmp_path), folder=tmp_path)
    features = load_or_build("train", 0, 4, scene_run.atlas, scene_run.model, tmp_path / "features")
    collect(config, scene_run, features, range(2))
    mask = scene_run.model_config.mask_token_id
    for draft in read_drafts(tmp_path / "drafts.jsonl"):
        masked = [state.count(mask) for state in draft.states]
        assert len(masked) == 3
        assert masked == sorted(masked, reverse=True)
        assert masked[0] > 0


def test_states_without_any_kept_are_refused(stage1: SceneRun) -> None:
    with pytest.raises(ValueError, match=r"states_share 0.5 needs drafts.states"):
        configuration(stage1, states_share=0.5)

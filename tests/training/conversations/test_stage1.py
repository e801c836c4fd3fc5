"""Stage I on conversations, end to end on a tiny checkpoint of the official layout."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from conversation_samples import conversation, write_checkpoint, write_conversations
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from rediff_model.model import Captioner
from rediff_model.runtime.attention import DenseAttend, PrefixAttend
from rediff_model.sampling.params import SamplerSettings
from rediff_model.sampling.sampler import generate
from training.config import TrainConfigError
from training.conversations import stage1
from training.conversations.batches import DialogueBatch, DialogueBatches, open_all
from training.conversations.config import DialogueTraining
from training.conversations.objective import DialogueObjective
from training.conversations.trainable import random_ids
from training.data.problems import Report
from training.loop.run_folder import claim
from training.loss.masked_diffusion import noise


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """A process trains in one precision; tests of several share one."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("dialogue") / "base")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("squares"))


def configuration(base: Path, rows: Path, **changes: Any) -> DialogueTraining:
    source = {"name": "squares", "rows": str(rows)}
    values = {
        "data": {"kind": "conversations", "sources": [source]},
        "start_from": str(base),
        "batch_size": 4,
        "micro_batch": 2,
        "steps": 6,
        "log_every": 2,
        "save_every": 2,
        "rates": {"language": 3e-3, "projector": 3e-3, "vision": 1e-4},
        "precision": "no",
        "save_dtype": "float32",
    }
    return DialogueTraining.model_validate(values | changes)


LORA = {"lora": {"rank": 4, "alpha": 8}, "train": ["language"]}


def weights(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "model.safetensors")


def lines(folder: Path) -> list[dict[str, float]]:
    text = (folder / "captions" / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def objective_of(
    base: Path, rows: Path, tmp_path: Path, **changes: Any
) -> tuple[DialogueObjective, DialogueBatches]:
    config = configuration(base, rows, **changes)
    dialogue = stage1.prepare(config, tmp_path)
    report = Report()
    sources = open_all(config.data, report)
    batches = stage1.batches_of(dialogue, sources, report, config.batch_size, config.parts)
    return stage1.objective_of(dialogue), batches


def test_rows_may_ask_what_the_first_checkpoint_was_not_taught(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    start = shutil.copytree(base, tmp_path / "start")
    values = json.loads((start / "config.json").read_text()) | {"taught_prompts": ["Why?"]}
    (start / "config.json").write_text(json.dumps(values))
    dialogue = stage1.prepare(configuration(start, rows), tmp_path / "run")
    assert dialogue.model_config.taught_prompts == ()
    assert dialogue.captioner.model.config == dialogue.model_config


def test_losses_fall_and_the_checkpoint_captions(base: Path, rows: Path, tmp_path: Path) -> None:
    held = {"name": "held", "rows": str(rows)}
    data = {"kind": "conversations", "sources": [held], "validation": held}
    config = configuration(base, rows, data=data | {"validation_samples": 12}, steps=12, ema=0.5)
    untrained = stage1.prepare(config, tmp_path)
    validate = stage1.validation_of(untrained, stage1.objective_of(untrained), Report())
    assert validate is not None
    before_losses = validate(0)
    checkpoint = stage1.run(config, tmp_path)

    last = lines(tmp_path)[-1]
    for part in ("masked", "clean", "pair"):
        name = f"validation_loss_{part}"
        assert last[name] < 0.8 * before_losses[name], part
    before, after = weights(base), weights(checkpoint)
    same = {name for name in after if torch.equal(after[name], before[name])}
    assert after.keys() == before.keys()
    assert {name.split("post_layernorm")[0] for name in same} == {
        "model.vision_tower.vision_tower.vision_model."
    }
    assert json.loads((tmp_path / "problems.json").read_text()) == {"counts": {}, "problems": []}

    captioner = Captioner.load(checkpoint)
    with Image.open(rows.parent / "0.png") as image:
        [features] = captioner.image_features([image])
    [made] = generate(
        captioner.model,
        [captioner.prompt(features)],
        [SamplerSettings(canvas_length=16)],
        captioner.token_ids,
    )
    assert isinstance(captioner.decode(made.ids), str)


class Killed(Exception):
    pass


@pytest.mark.parametrize("changes", [{"ema": 0.9, "prefetch": 0}, LORA], ids=["full", "lora"])
def test_a_killed_run_ends_in_the_same_checkpoint(
    changes: dict[str, Any], base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(base, rows, **changes)
    whole = weights(stage1.run(config, tmp_path / "whole"))
    make = DialogueBatches.__call__

    def until_5(self: DialogueBatches, step: int, part: int) -> DialogueBatch:
        if step == 5:
            raise Killed
        return make(self, step, part)

    monkeypatch.setattr(DialogueBatches, "__call__", until_5)
    with pytest.raises(Killed):
        stage1.run(config, tmp_path / "killed")
    monkeypatch.undo()
    again = weights(stage1.run(config, tmp_path / "killed"))
    assert [row["step"] for row in lines(tmp_path / "killed")] == [2, 4, 6]
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_adapters_alone_are_trained_and_are_merged(base: Path, rows: Path, tmp_path: Path) -> None:
    checkpoint = stage1.run(configuration(base, rows, **LORA, prefix_attention="prefix"), tmp_path)
    state = load_file(tmp_path / "captions" / "state" / "weights.safetensors")
    assert len(state) == 2 * 7 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in state)
    before, after = weights(base), weights(checkpoint)
    assert after.keys() == before.keys()
    adapted = set()
    for name, value in state.items():
        if ".lora_A." not in name:
            continue
        other = state[name.replace("lora_A", "lora_B")]
        own = name.removeprefix("captioner.").replace(".lora_A.default", "")
        assert other.abs().max() > 0
        torch.testing.assert_close(after[own], before[own] + 2 * other @ value)
        adapted.add(own)
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - adapted)
    assert json.loads((checkpoint / "config.json").read_text())["prefix_attention"] == "prefix"
    assert json.loads((base / "config.json").read_text())["prefix_attention"] == "full"


def test_half_precision_keeps_what_is_trained_in_float32(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    changes = {"precision": "bf16", "save_dtype": "bfloat16", "checkpointing": True, "steps": 2}
    objective, _ = objective_of(base, rows, tmp_path, **changes, **LORA)
    kinds = {(value.requires_grad, value.dtype) for value in objective.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    checkpoint = stage1.run(configuration(base, rows, **changes, **LORA), tmp_path / "run")
    assert {value.dtype for value in weights(checkpoint).values()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["keep", "prefix"])
def test_logits_are_those_of_serving(kind: str, base: Path, rows: Path, tmp_path: Path) -> None:
    """Samples packed without padding, against each alone as the sampler runs it."""
    objective, batches = objective_of(base, rows, tmp_path, prefix_attention=kind, micro_batch=4)
    batch = batches(0, 0)
    lengths = (batch.rows.ids_BL >= -200).sum(dim=1).tolist()
    assert batch.rows.allowed_BL is not None
    noised = noise(
        batch.rows.ids_BL,
        batch.rows.labels_BL,
        batch.rows.revise_BL,
        objective.chance.draws(batch.rows.ids_BL, batch.keys_B),
        objective.objective,
    )
    model = objective.captioner
    with torch.no_grad():
        packed_NV = objective.logits(batch, noised)
        alone = []
        for number in range(len(lengths)):
            tiles, plan = batch.tiles[number], batch.plans[number]
            assert tiles is not None
            assert plan is not None
            [image_LD] = model.encode_images([tiles], [plan])
            ids_L = noised.ids_BL[number][batch.rows.allowed_BL[number]]
            embeds_LD = model.model.embed_tokens(ids_L.clamp(min=0))
            embeds_LD[ids_L == -200] = image_LD
            positions_L = torch.arange(len(ids_L))
            prompt = batch.rows.prompt_lengths[number] if kind == "prefix" else 0
            record = DenseAttend(1, record=True)
            if prompt:
                model.model(embeds_LD[:prompt], positions_L[:prompt], record)
                attend = PrefixAttend(record.keys, record.values)
                hidden = model.model(embeds_LD[prompt:], positions_L[prompt:], attend)
                hidden = torch.cat((hidden.new_zeros(prompt, hidden.shape[1]), hidden))
            else:
                hidden = model.model(embeds_LD, positions_L, record)
            length = batch.rows.ids_BL.shape[1]
            chosen = noised.rows_N[noised.rows_N // length == number] % length
            alone.append(model.logits(hidden[chosen]))
    torch.testing.assert_close(packed_NV, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_layers_computed_again_give_the_same_gradient(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    gradients = []
    for again in (False, True):
        objective, batches = objective_of(base, rows, tmp_path, checkpointing=again)
        loss, _ = objective(batches(0, 0))
        loss.backward()
        gradients.append({n: p.grad for n, p in objective.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        assert value is not None, name
        torch.testing.assert_close(value, gradients[1][name])


def test_a_batch_without_pictures_reaches_every_weight(base: Path, tmp_path: Path) -> None:
    """Or data parallelism would wait for the gradient of the tower for ever."""
    path = tmp_path / "text.jsonl"
    row = conversation("", "Yes.")
    del row["image"]
    row["conversations"][0]["value"] = "Is it so?"
    path.write_text(json.dumps(row) + "\n")
    objective, batches = objective_of(base, path, tmp_path)
    loss, _ = objective(batches(0, 0))
    loss.backward()
    missing = [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize(
    "changes", [{"loss": {"compat": "official"}}, {"loss": {"stutter": 0.5, "replace_rate": 1.0}}]
)
def test_other_losses_train(
    changes: dict[str, Any], base: Path, rows: Path, tmp_path: Path
) -> None:
    stage1.run(configuration(base, rows, **changes, steps=2), tmp_path)
    assert lines(tmp_path)[-1]["loss"] > 0


def write_drafted(rows: Path, folder: Path) -> Path:
    """Three of four rows have a weaker model's caption, which is wrong, beside the answer."""
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    for number, row in enumerate(found):
        row["image"] = str(rows.parent / row["image"])
        row.pop("revise", None)
        if number % 4:
            row["draft"] = "A grey circle."
    path = folder / "drafted.jsonl"
    path.write_text("\n".join(map(json.dumps, found)))
    return path


def test_replaced_tokens_are_those_of_a_weaker_draft(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    path = write_drafted(rows, tmp_path)
    source = {"name": "squares", "rows": str(path), "images": str(rows.parent)}
    data = {"kind": "conversations", "sources": [source], "group_lengths": False}
    loss = {"confusion": 0.5, "stutter": 0.5, "replace_rate": 1.0}
    changes = {"data": data, "micro_batch": 4, "loss": loss}
    objective, batches = objective_of(base, path, tmp_path, **changes)
    beside = seen = 0
    for step in range(6):
        batch = batches(step, 0)
        ids_BL, others_BL = batch.rows.ids_BL, batch.rows.others_BL
        assert others_BL is not None
        draws = objective.chance.draws(ids_BL, batch.keys_B, others_BL)
        again = objective.chance.draws(ids_BL, batch.keys_B)
        drafted_BL = others_BL >= 0
        assert torch.equal(draws.ids_BL[~drafted_BL], again.ids_BL[~drafted_BL])
        before_BL = torch.roll(ids_BL, 1, dims=1)
        is_other_BL = draws.ids_BL == others_BL
        assert bool((is_other_BL | (draws.ids_BL == before_BL))[drafted_BL].all())
        beside += int((is_other_BL & drafted_BL).sum())
        seen += int(drafted_BL.sum())
    assert 0.3 < beside / seen < 0.7
    moved = batch.to(torch.device("cpu")).rows
    assert moved.others_BL is not None
    stage1.run(configuration(base, path, **changes, steps=2), tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["loss"] > 0


def test_confusion_without_a_draft_is_refused(base: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainConfigError, match=r"loss\.confusion 0\.2: no row of data\.sources"):
        stage1.run(configuration(base, rows, loss={"confusion": 0.2}), tmp_path)


def test_the_canvas_is_filled_as_it_is_served(base: Path, rows: Path, tmp_path: Path) -> None:
    source = {"name": "squares", "rows": str(rows)}
    data = {"kind": "conversations", "sources": [source], "fill_canvas": True}
    _, batches = objective_of(base, rows, tmp_path, data=data)
    trained = (batches(0, 0).rows.labels_BL != -100).sum(dim=1).tolist()
    assert trained == [16, 16]


def test_bad_data_is_reported_with_its_place_and_skipped(
    base: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = rows.read_text().splitlines()[:3]
    text[1:1] = ["{", json.dumps(conversation("gone.png", "A dog."))]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    text.append(json.dumps(conversation("broken.png", "A dog.")))
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes((rows.parent / f"{number}.png").read_bytes())
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(text))
    stage1.run(configuration(base, path, steps=4), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "problems.json").read_text())
    assert report["counts"] == {"malformed": 1, "image": 2}
    places = {problem["where"] for problem in report["problems"]}
    assert places == {f"{path}:{line}" for line in (2, 3, 6)}
    assert f"{path}:2: malformed" in caplog.text
    # Run again, nothing is drawn, and what drawing found is not forgotten.
    stage1.run(configuration(base, path, steps=4), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "problems.json").read_text()) == report


def test_random_ids_are_no_special_tokens(base: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    low, high = random_ids(tokenizer, 648, "default")
    assert all(tokenizer.decode([token]) for token in range(low, high))
    assert high - low > 600
    assert random_ids(tokenizer, 126464, "official") == (1, 125464)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"batch_size": 5}, "batch_size 5 is no multiple of micro_batch 2"),
        ({"train": ["vision"], "lora": {}}, "lora adapts the language model"),
        ({"train": ["vision", "vision"]}, "names a part twice"),
        ({"epochs": 2.0}, "steps 6 and epochs 2.0: one of them"),
        ({"loss": {"weights": [0, 0, 0, 0]}}, "leave nothing to train"),
        ({"loss": {"stutter": 0.6, "confusion": 0.5}}, "stutter 0.6 and confusion 0.5 exceed 1"),
        ({"loss": {"confusion": 0.5, "compat": "official"}}, "confusion 0.5 is not part"),
        ({"loss": {"confusion": 0.5, "refine": False}}, "confusion 0.5 needs tokens"),
        ({"loss": {"confusion": 0.5, "replace_rate": 0}}, "replace_rate 0.0"),
        ({"data": {"kind": "conversations", "fill_canvas": True}, "loss": {"compat": "official"}},
         "fill_canvas is not part"),
        ({"data": {"kind": "conversations", "sources": [{"name": "a", "rows": "x"}] * 2}},
         "two sources have the name a"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_named(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        configuration(Path("base"), Path("rows"), **changes)


def test_a_run_that_cannot_begin_says_why(base: Path, rows: Path, tmp_path: Path) -> None:
    def sources(**changes: str) -> dict[str, Any]:
        return {"data": {"kind": "conversations", "sources": [{"name": "a", **changes}]}}

    (tmp_path / "empty.jsonl").write_text("{\n")
    cases: list[tuple[dict[str, Any], str]] = [
        (sources(rows="nowhere.json"), "a: nowhere.json cannot be read"),
        (sources(rows="nowhere/*.tar"), r"a: nowhere/\*.tar is neither"),
        (sources(rows=str(rows), images="nowhere"), "a: nowhere is neither a folder"),
        (sources(rows=str(tmp_path / "empty.jsonl")), "has no usable row: 1 malformed"),
        ({"data": {"kind": "conversations"}}, r"data\.sources is empty"),
        (LORA | {"lora": {"targets": ["q"]}}, r"lora\.targets: no layer .* has q"),
    ]
    for number, (changes, fault) in enumerate(cases):
        with pytest.raises(TrainConfigError, match=fault):
            stage1.run(configuration(base, rows, **changes), tmp_path / str(number))
        assert not (tmp_path / str(number) / "config.json").exists()
    with claim(tmp_path / "claimed", configuration(base, rows), stage1.FREE):
        pass
    with pytest.raises(TrainConfigError, match="begun with another batch_size: 4, now 8"):
        stage1.run(configuration(base, rows, batch_size=8), tmp_path / "claimed")
    changed = configuration(base, rows, loss={"weights": [1, 2, 1, 1]})
    with pytest.raises(TrainConfigError, match=r"another loss\.weights\.1: 1\.0, now 2\.0"):
        stage1.run(changed, tmp_path / "claimed")

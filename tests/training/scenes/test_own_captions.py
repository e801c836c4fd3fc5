"""Own captions as targets: masks, weights, and the model's own fill."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scene_runs import configuration

from training.correction.records import Draft, write_records
from training.correction.selection import Corrected
from training.loss.on_policy import OnPolicy
from training.scenes.canvases import (
    CLEAN,
    COUNT_SLOT,
    END_SLOT,
    MASKED,
    NOT_OWN,
    RELATION_SLOTS,
    REPLACED,
)
from training.scenes.objective import SceneBatch, SceneObjective
from training.scenes.own_captions import (
    OwnCaptions,
    OwnCaptionShape,
    caption_slots,
    numbers_and_agreement,
)
from training.scenes.stage2 import run, with_neighbours
from training.stickers.canonical import with_neighbour_relations
from training.stickers.grammar import compose
from training.stickers.sample import sample_scene
from training.stickers.templates import SLOTS

if TYPE_CHECKING:
    from pathlib import Path

    from training.scenes.new_model import SceneRun

MASK, STOP, LENGTH = 4, 5, 40


def rows(count: int = 6, words: int = 20) -> list[Corrected]:
    return [
        Corrected(
            key=f"train-{seed}@8",
            scene=("train", seed),
            ids=tuple(range(10, 10 + words)),
            labels=tuple(range(10 + seed, 10 + seed + words)),
            flags=(),
            whole=True,
        )
        for seed in range(count)
    ]


def dealer(own: list[Corrected] | None = None, **shape: Any) -> OwnCaptions:
    return OwnCaptions(
        rows() if own is None else own,
        OwnCaptionShape(**shape),
        length=LENGTH,
        stop_id=STOP,
        mask_id=MASK,
        slots=lambda row: [COUNT_SLOT, *[0] * (len(row.labels) - 1)],
    )


def test_only_whole_captions_that_fit_are_targets() -> None:
    broken = Corrected("train-9@8", ("train", 9), (7, 7), (7, 7), ())
    long = Corrected("train-8@8", ("train", 8), (7,), (7,) * LENGTH, (), whole=True)
    own = dealer([*rows(2), broken, long])
    assert len(own) == 2
    scenes, canvases = own.deal(8, 2, np.random.default_rng(0))
    assert {seed for _, seed in scenes} == {0, 1}
    for (_, seed), target in zip(np.repeat(scenes, 2, axis=0), canvases.targets_NC, strict=True):
        assert target.tolist() == [*range(10 + int(seed), 30 + int(seed)), *[STOP] * 20]
    with pytest.raises(ValueError, match="no caption is whole"):
        dealer([broken, long])


def test_positions_count_by_what_is_visible_behind_the_end_and_by_kind() -> None:
    own = dealer(on_policy=0.5, right_weight=0.25, end_weight=0.5, slot_weights={"count": 4})
    _, canvases = own.deal(50, 2, np.random.default_rng(1))
    masked = canvases.inputs_NC == MASK
    assert (canvases.parts_NC == np.where(masked, MASKED, CLEAN)).all()
    assert (canvases.inputs_NC[~masked] == canvases.targets_NC[~masked]).all()
    base = np.where(canvases.slots_NC == END_SLOT, 0.5, 1.0)
    base[canvases.slots_NC == COUNT_SLOT] = 4
    np.testing.assert_allclose(canvases.weights_NC, base * np.where(masked, 1.0, 0.25))


def test_masks_and_fill_shares_are_drawn_as_configured() -> None:
    own = dealer(mask_low=0.3, policy_low=0.8, on_policy=0.5, fill_all=0.4)
    _, canvases = own.deal(400, 2, np.random.default_rng(2))
    share = (canvases.inputs_NC == MASK).mean(axis=1)
    fill = canvases.fill_N.reshape(400, 2)
    assert (fill[:, 0] == 0).all()
    assert (fill[:, 1] > 0).all()
    assert (fill[:, 1] == 1).mean() == pytest.approx(0.4, abs=0.06)
    plain, policy = share[0::2], share[1::2]
    assert plain.mean() == pytest.approx(0.65, abs=0.03)
    assert policy.mean() == pytest.approx(0.9, abs=0.03)
    assert policy.min() > 0.6


def test_complementary_canvases_mask_every_position_once() -> None:
    own = dealer(complementary=1.0)
    _, canvases = own.deal(6, 3, np.random.default_rng(3))
    masked = (canvases.inputs_NC == MASK).reshape(6, 3, LENGTH)
    assert (masked[:, 0] ^ masked[:, 1]).all()
    assert (canvases.fill_N.reshape(6, 3)[:, :2] == 0).all()
    # The third has no partner, so it is filled by the model.
    assert (canvases.fill_N.reshape(6, 3)[:, 2] > 0).any()
    _, pairs = own.deal(6, 2, np.random.default_rng(3))
    assert (pairs.fill_N == 0).all()


def test_canvases_that_ask_for_numbers_show_everything_else() -> None:
    own = dealer(numbers=1.0, on_policy=0.0)
    _, canvases = own.deal(4, 2, np.random.default_rng(4))
    assert ((canvases.inputs_NC == MASK) == numbers_and_agreement(canvases.slots_NC)).all()
    assert (canvases.inputs_NC == MASK).sum(axis=1).tolist() == [3] * 8


def test_canvases_that_ask_for_relations_show_everything_else() -> None:
    kinds = [*RELATION_SLOTS, COUNT_SLOT]
    own = OwnCaptions(
        rows(),
        OwnCaptionShape(numbers=0.4, relations=0.6, on_policy=0.0),
        length=LENGTH,
        stop_id=STOP,
        mask_id=MASK,
        slots=lambda row: [*kinds, *[0] * (len(row.labels) - len(kinds))],
    )
    _, canvases = own.deal(100, 2, np.random.default_rng(4))
    masked = canvases.inputs_NC == MASK
    numbers = (masked == numbers_and_agreement(canvases.slots_NC)).all(axis=1)
    assert numbers.mean() == pytest.approx(0.4, abs=0.1)
    for slot in RELATION_SLOTS:
        alone = (masked == (canvases.slots_NC == slot)).all(axis=1)
        assert alone.mean() == pytest.approx(0.2, abs=0.1)
        numbers |= alone
    assert numbers.all()


def test_the_same_seed_deals_the_same_canvases() -> None:
    own = dealer(complementary=0.3, numbers=0.2, relations=0.1)
    first, second = (own.deal(5, 2, np.random.default_rng(7)) for _ in range(2))
    assert first[0] == second[0]
    for name in ("inputs_NC", "weights_NC", "fill_N"):
        assert (getattr(first[1], name) == getattr(second[1], name)).all()


@pytest.mark.parametrize(
    ("shape", "fault"),
    [
        ({"mask_low": 0.9, "mask_high": 0.5}, "mask_low 0.9 is above mask_high 0.5"),
        ({"numbers": 0.6, "relations": 0.5}, "numbers 0.6 and relations 0.5 exceed 1 together"),
        ({"slot_weights": {"count": -1}}, "slot_weights: count must be 0 or more, got -1"),
        ({"slot_weights": {"weather": 1}}, "slot_weights"),
    ],
)
def test_wrong_shapes_are_named(shape: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        OwnCaptionShape(**shape)


def test_slots_of_a_true_caption_are_those_it_was_written_with(stage1: SceneRun) -> None:
    scene = sample_scene(11, stage1.atlas)
    caption = compose(scene, np.random.default_rng(11))
    ids = stage1.tokenizer.encode(caption.text).ids
    slots = caption_slots(ids, scene, stage1.tokenizer)
    assert len(slots) == len(ids)
    said = {
        SLOTS[slot - 1]: stage1.tokenizer.decode(
            [t for t, s in zip(ids, slots, strict=True) if s == slot]
        )
        for slot in {*slots} - {0}
    }
    assert said["backdrop"].strip() == scene.backdrop
    assert {"count", "name", "colour", "relation"} <= said.keys()


def batch_of(objective: SceneObjective, share: float, canvases: int = 4) -> SceneBatch:
    """Masked canvases of two pictures, which ask for a fill of a share."""
    generator = torch.Generator().manual_seed(1)
    config = objective.captioner.config
    targets = torch.randint(10, 200, (canvases, LENGTH), generator=generator)
    masked = torch.rand(targets.shape, generator=generator) < 0.6
    nowhere = torch.full(targets.shape, -100)
    features = torch.randn(2, 36, config.vision.hidden_size, generator=generator)
    return SceneBatch(
        features,
        torch.where(masked, config.mask_token_id, targets),
        targets,
        torch.ones(targets.shape),
        torch.where(masked, MASKED, CLEAN),
        torch.zeros_like(targets),
        nowhere,
        torch.zeros(targets.shape),
        torch.tensor([0.0, share] * (canvases // 2)),
    )


def test_the_model_fills_with_what_it_predicts(stage1: SceneRun) -> None:
    objective = stage1.objective
    objective.on_policy = OnPolicy(wrong_weight=3.0, right_weight=0.5)
    batch = batch_of(objective, 1.0)
    filled = objective.filled(batch)
    assert torch.equal(filled.inputs_NC[0::2], batch.inputs_NC[0::2])
    assert torch.equal(filled.weights_NC[0::2], batch.weights_NC[0::2])
    logits = objective.logits(batch.features_BPF, batch.inputs_NC).detach()
    config = objective.captioner.config
    logits[:, [config.mask_token_id, *config.suppressed_token_ids]] = -torch.inf
    expected = logits.argmax(-1).view(batch.inputs_NC.shape)[1::2]
    masked = batch.inputs_NC[1::2] == config.mask_token_id
    assert torch.equal(filled.inputs_NC[1::2][masked], expected[masked])
    assert torch.equal(filled.inputs_NC[1::2][~masked], batch.inputs_NC[1::2][~masked])
    right = expected == batch.targets_NC[1::2]
    assert torch.equal(
        filled.weights_NC[1::2][masked],
        torch.where(right, 0.5, 3.0)[masked],
    )
    assert torch.equal(filled.parts_NC[1::2][masked], torch.where(right, CLEAN, REPLACED)[masked])
    objective.on_policy = None
    assert objective.filled(batch) is batch


def test_the_entropy_term_is_of_own_captions_alone(stage1: SceneRun) -> None:
    objective = stage1.objective
    batch = batch_of(objective, 0.0)
    own, others = batch, batch_of(objective, 0.0)
    others.fill_N.fill_(NOT_OWN)
    # As if the model were right everywhere.
    said = objective.logits(batch.features_BPF, batch.inputs_NC).argmax(-1)
    for each in (own, others):
        each.targets_NC.copy_(said.view(each.targets_NC.shape))
    objective.on_policy = None
    plain, _ = objective(own)
    objective.on_policy = OnPolicy(entropy_weight=0.5)
    assert torch.allclose(objective(others)[0], plain)
    assert objective(own)[0] > plain + 1
    objective.on_policy = None


def drafts_of(stage1: SceneRun) -> list[Draft]:
    """True captions of four scenes, and one of another scene."""
    drafts = []
    for seed in range(4):
        scene = sample_scene(seed if seed else 17, stage1.atlas)
        text = compose(scene, np.random.default_rng(seed)).text
        ids = tuple(stage1.tokenizer.encode(text).ids)
        drafts.append(Draft(f"train-{seed}@8", "?", "It.", ids, text, 8, scene=("train", seed)))
    return drafts


def test_a_run_on_own_captions_learns_and_ends_the_same_when_it_was_killed(
    stage1: SceneRun, tmp_path: Path
) -> None:
    weights = []
    for name in ("whole", "killed"):
        folder = tmp_path / name / "round-0"
        folder.mkdir(parents=True)
        write_records(folder / "drafts.jsonl", [each.to_json() for each in drafts_of(stage1)])
        config = configuration(
            stage1,
            drafts={"scenes": 4, "tokens_per_step": (8,)},
            own_captions={
                "share": 0.5,
                "numbers": 0.2,
                "relations": 0.1,
                "slot_weights": {"count": 2},
                "neighbour_relations": True,
            },
            correction_share=0,
            start_share=0.25,
            phases=[{"steps": 30}],
            save_every=10,
        )
        if name == "killed":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(OwnCaptions, "deal", ends_after(OwnCaptions.deal, 17))
                with pytest.raises(KeyboardInterrupt):
                    run(config, tmp_path / name)
        weights.append(load_file(run(config, tmp_path / name) / "model.safetensors"))
        lines = (folder / "captions" / "log.jsonl").read_text().splitlines()
        assert {"loss_masked", "loss_replaced"} <= json.loads(lines[0]).keys()
        shutil.rmtree(folder / "captions" / "state")
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_targets_may_state_the_relations_of_neighbours(stage1: SceneRun) -> None:
    rewritten = 0
    for seed in range(4):
        scene = sample_scene(seed, stage1.atlas)
        text = compose(scene, np.random.default_rng(seed)).text
        ids = tuple(stage1.tokenizer.encode(text).ids)
        row = Corrected(f"train-{seed}@8", ("train", seed), ids, ids, (), whole=True)
        labels = with_neighbours(row, stage1).labels
        expected = with_neighbour_relations(text, scene, stage1.atlas.names)
        assert stage1.tokenizer.decode(labels) == expected
        rewritten += expected != text
        assert with_neighbours(replace(row, whole=False), stage1).labels == ids
    assert rewritten


def ends_after(deal: Any, calls: int) -> Any:
    made: list[None] = []

    def counted(*arguments: Any) -> Any:
        made.append(None)
        if len(made) > calls:
            raise KeyboardInterrupt
        return deal(*arguments)

    return counted


def test_the_weights_that_a_round_ends_with_hold_a_share_of_the_start(
    stage1: SceneRun, tmp_path: Path
) -> None:
    ended = {}
    for share in (0.0, 0.75):
        config = configuration(stage1, correction_share=0, start_share=share, phases=[{"steps": 3}])
        ended[share] = load_file(run(config, tmp_path / str(share)) / "model.safetensors")
    began = load_file(stage1.folder / "checkpoint" / "model.safetensors")
    for name, value in began.items():
        expected = ended[0.0][name].float().lerp(value.float(), 0.75)
        torch.testing.assert_close(ended[0.75][name].float(), expected, atol=1e-6, rtol=1e-5)
    head = next(name for name in began if name.endswith("lm_head.weight"))
    assert not torch.equal(ended[0.0][head], began[head])

"""Stage II of an embedded model: draft, correct, filter, train, with plain files between."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from rediff_model.chat_template import DEFAULT_QUESTION
from rediff_model.config import Preferences, TokenIds
from rediff_model.files.atomic import write_json
from training.config import SceneTraining, Strict
from training.correction.drafts import DraftSettings, Subject, write_drafts
from training.correction.experts.build import ExpertShape, free_expert, scene_expert
from training.correction.records import read_drafts
from training.correction.selection import filter_corrections, read_corrected
from training.correction.verdicts import correct
from training.data.problems import listed
from training.loop.run_folder import alone, claim
from training.loop.state import processes, wait_for
from training.loop.train import train
from training.scenes import stage1
from training.scenes.canvases import Mix
from training.scenes.draft_canvases import CorrectionCanvases, StateCanvases, join
from training.scenes.features import load_or_build
from training.scenes.new_model import prepare
from training.scenes.objective import SceneBatch, slot_accuracy
from training.scenes.own_captions import OwnCaptions, OwnCaptionShape, caption_slots
from training.scenes.stage1 import (
    export,
    loop_settings,
    mix_of,
    noised_canvases,
    optimizers,
)
from training.stickers.canonical import with_neighbour_relations
from training.stickers.grammar import compose
from training.stickers.sample import sample_scene

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from training.correction.selection import Corrected
    from training.scenes.features import SceneFeatures
    from training.scenes.new_model import SceneRun
    from training.stickers.graph import Scene

logger = logging.getLogger(__name__)

FREE = (*stage1.FREE, "rounds")
"""What may change when a round is resumed."""


class DraftShape(Strict):
    """What to draft; fields as in `training.correction.drafts.DraftSettings`."""

    scenes: int = Field(2000, gt=0)
    """Of the training scenes, so many from `first` on; each round takes the next."""
    first: int = Field(0, ge=0)
    tokens_per_step: tuple[int, ...] = Field((1, 4, 8), min_length=1)
    every: bool = True
    temperature: float = Field(0.0, ge=0)
    batch_size: int = Field(16, gt=0)
    states: int = Field(0, ge=0)
    reveal_thresholds: dict[int, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)

    def settings(
        self, seed: int, canvas_length: int = 128, preferences: Preferences | None = None
    ) -> DraftSettings:
        """Raises ValueError for numbers that do not fit each other."""
        return DraftSettings(
            canvas_length=canvas_length,
            seed=seed,
            preferences=preferences or Preferences(),
            **self.model_dump(exclude={"scenes", "first"}),
        )


class SceneCorrection(SceneTraining):
    """Stage II on scenes. `phases` give the steps, and the mix of the Stage I canvases."""

    rounds: int = Field(1, gt=0)
    drafts: DraftShape = DraftShape()
    expert: ExpertShape = ExpertShape()
    correction_share: float = Field(1.0, ge=0, le=1)
    """Share of the pictures whose canvases are corrected drafts, of those without own captions; 0
    goes on with Stage I alone."""
    correction_weight: float = Field(1.0, gt=0)
    """What a token of a corrected segment counts."""
    states_share: float = Field(0.0, ge=0, le=1)
    """Of the pictures with corrected drafts, the share whose canvases are what the draft was on its
    way, `drafts.states` of them, to be completed to what it should have become."""
    own_captions: OwnCaptionShape | None = None
    """Self-distillation on the corrected drafts that are whole, with on-policy self-correction."""
    start_share: float = Field(0.0, ge=0, lt=1)
    """How much of `start_from` is in the weights that a round ends with: 0.5 is the mean of before
    and after."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start_from is None:
            raise ValueError("start_from must name the checkpoint that drafts")
        if self.tower_steps:
            raise ValueError(f"tower_steps {self.tower_steps} belongs to Stage I")
        if self.states_share and self.expert.kind == "openai":
            raise ValueError(
                f"states_share {self.states_share} needs an expert that knows whether a caption "
                "leaves anything out, not openai"
            )
        if self.states_share and not self.drafts.states:
            raise ValueError(f"states_share {self.states_share} needs drafts.states above 0")
        if self.drafts.first + self.drafts.scenes * self.rounds > self.data.scenes:
            raise ValueError(
                f"{self.rounds} rounds of {self.drafts.scenes} scenes from {self.drafts.first} on "
                f"need more than the {self.data.scenes} of data.scenes"
            )
        # Wrong numbers are to be named now, not after an hour.
        self.drafts.settings(self.seed)
        return self


@alone
def run(config: SceneCorrection, folder: Path) -> Path:
    """Run all rounds, resuming whatever `folder` holds; the folder of the last checkpoint."""
    if config.threads:
        torch.set_num_threads(config.threads)
    checkpoint = config.start_from
    for number in range(config.rounds):
        own = config.model_copy(update={"start_from": checkpoint})
        checkpoint = run_round(own, folder, number)
    assert checkpoint is not None
    return checkpoint


def run_round(config: SceneCorrection, folder: Path, number: int) -> Path:
    """One round into `folder/round-<number>`: its files, and the checkpoint it ends in.

    Raises:
        TrainConfigError: the round was begun with another configuration.
        ExpertError: the expert cannot be used.
    """
    here = folder / f"round-{number}"
    group = processes()
    with group.main_process_first(), claim(here, config, (*FREE, *free_expert(here))):
        own = config.own_captions
        scene_run = prepare(config, here, own.objective() if own else None)
    with group.main_process_first():
        features = _features("train", config.data.first_seed, config.data.scenes, scene_run, folder)
        validation = _features("validation", 0, config.data.validation_scenes, scene_run, folder)
    dealers = None
    if config.correction_share or config.own_captions:
        first = config.drafts.first + number * config.drafts.scenes
        # What is trained on must not change any more, such as by answers that come late.
        if group.is_main_process and not (here / "captions").exists():
            collect(config, scene_run, features, range(first, first + config.drafts.scenes))
        wait_for(here / "counts.json")
        group.wait_for_everyone()
        dealers = _corrected(config, scene_run, here)
    start = {name: value.detach().clone() for name, value in scene_run.objective.named_parameters()}
    average = train_corrections(config, scene_run, features, validation, dealers)
    average = {name: value.lerp(start[name], config.start_share) for name, value in average.items()}
    if group.is_main_process:
        export(scene_run, average, here / "checkpoint")
    group.wait_for_everyone()
    return here / "checkpoint"


def collect(
    config: SceneCorrection, scene_run: SceneRun, features: SceneFeatures, chosen: Sequence[int]
) -> None:
    """Draft, correct and filter the scenes `chosen`, by their number among the features.

    Writes `drafts.jsonl`, `verdicts.jsonl`, `corrected.jsonl` and, with counts, `counts.json`.
    """
    folder, tokenizer = scene_run.folder, scene_run.tokenizer
    # Before hours of drafting: the client may lack its key.
    expert = scene_expert(
        config.expert, scene_run.atlas, tokenizer, config.seed, folder / "answers"
    )
    subjects = [_subject(features.scenes[row]) for row in chosen]
    model_config = scene_run.model_config
    settings = config.drafts.settings(
        config.seed, model_config.canvas_length, model_config.preferences
    )

    def prompts(numbers: Sequence[int]) -> list[torch.Tensor]:
        rows = np.array([chosen[number] for number in numbers])
        with torch.inference_mode():
            return list(scene_run.objective.prompt(features.rows(rows).to(scene_run.model.device)))

    write_drafts(
        scene_run.model.eval(),
        TokenIds.from_config(scene_run.model_config),
        tokenizer.decode,
        subjects,
        prompts,
        settings,
        folder / "drafts.jsonl",
        progress=True,
    )
    drafts = read_drafts(folder / "drafts.jsonl")
    verdicts = folder / "verdicts.jsonl"
    counts = {
        "correct": dict(correct(drafts, expert, verdicts, progress=True)),
        "filter": dict(
            filter_corrections(
                drafts,
                verdicts,
                tokenizer,
                folder / "corrected.jsonl",
                keep_right=config.own_captions is not None,
            )
        ),
        "expert": expert.usage(),
    }
    logger.info("corrections: %s", counts)
    write_json(folder / "counts.json", counts)


@dataclass(frozen=True, slots=True)
class Dealers:
    """What deals the canvases of corrected drafts, each if the configuration asks for it."""

    corrections: CorrectionCanvases | None = None
    states: StateCanvases | None = None
    own: OwnCaptions | None = None


def _corrected(config: SceneCorrection, scene_run: SceneRun, here: Path) -> Dealers:
    """What `collect` left to train on; raises ValueError, with what became of all, for nothing."""
    rows, model = read_corrected(here / "corrected.jsonl"), scene_run.model_config
    tokenizer, atlas = scene_run.tokenizer, scene_run.atlas
    length, stop_id, mask_id = model.canvas_length, model.stop_token_id, model.mask_token_id

    def slots(row: Corrected) -> list[int]:
        split, seed = row.scene
        return caption_slots(row.labels, sample_scene(seed, atlas, split=split), tokenizer)

    corrections = states = own = None
    shape = config.own_captions
    try:
        if config.correction_share and (shape is None or shape.share < 1):
            corrections = CorrectionCanvases(
                rows, length=length, stop_id=stop_id, weight=config.correction_weight
            )
            if config.states_share:
                states = StateCanvases(rows, length=length, stop_id=stop_id, mask_id=mask_id)
        if shape is not None:
            own = OwnCaptions(
                [with_neighbours(row, scene_run) for row in rows]
                if shape.neighbour_relations
                else rows,
                shape,
                length=length,
                stop_id=stop_id,
                mask_id=mask_id,
                slots=slots if shape.slot_weights or shape.numbers else None,
            )
            logger.info("%d of %d captions are whole", len(own), len(rows))
    except ValueError as error:
        counts = json.loads((here / "counts.json").read_text(encoding="utf-8"))["filter"]
        raise ValueError(
            f"{here / 'corrected.jsonl'}: {error}, of {config.drafts.scenes} drafts: "
            f"{listed(counts)}"
        ) from None
    return Dealers(corrections, states, own)


def with_neighbours(row: Corrected, scene_run: SceneRun) -> Corrected:
    """A row whose target, if it is whole, states the relations of neighbours."""
    if not row.whole:
        return row
    split, seed = row.scene
    scene = sample_scene(seed, scene_run.atlas, split=split)
    text = scene_run.codec.decode(row.labels)
    text = with_neighbour_relations(text, scene, scene_run.atlas.names)
    return replace(row, labels=tuple(scene_run.codec.encode(text)))


def train_corrections(
    config: SceneCorrection,
    scene_run: SceneRun,
    features: SceneFeatures,
    validation: SceneFeatures,
    dealers: Dealers | None = None,
) -> dict[str, torch.Tensor]:
    """Train on own captions, corrected drafts and Stage I canvases, as many pictures a step as
    Stage I."""
    first_seed = config.data.first_seed
    corrections, states, own = (
        (dealers.corrections, dealers.states, dealers.own) if dealers else (None, None, None)
    )
    own_share = config.own_captions.share if config.own_captions else 0.0

    def batch(step: int, part: int) -> SceneBatch:
        rng = np.random.default_rng((config.seed, 4, step, part))
        mix = mix_of(config.phase_at(step))
        distilled = int(own_share * config.pictures + rng.random()) if own else 0
        others = config.pictures - distilled
        corrected = int(config.correction_share * others + rng.random())
        corrected = corrected if corrections is not None else 0
        midway = int(config.states_share * corrected + rng.random()) if states else 0
        dealt = []
        if own is not None and distilled:
            dealt.append(own.deal(distilled, config.wordings, rng))
        if corrections is not None and corrected > midway:
            dealt.append(corrections.deal(corrected - midway, config.wordings, rng))
        if states is not None and midway:
            dealt.append(states.deal(midway, config.wordings, mix, rng))
        rows = [seed - first_seed for scenes, _ in dealt for _, seed in scenes]
        parts = [canvases for _, canvases in dealt]
        if len(rows) < config.pictures:
            fresh = rng.integers(0, len(features.scenes), config.pictures - len(rows)).tolist()
            scenes = [features.scenes[row] for row in fresh]
            parts.append(noised_canvases(scene_run, scenes, step, rng))
            rows += fresh
        text = scene_run.drawn_text(rng)
        return SceneBatch.of(features.rows(np.array(rows)), reduce(join, parts), text)

    held = SceneBatch.of(
        validation.rows(np.arange(len(validation.scenes))),
        scene_run.canvases.build(
            validation.scenes, 1, Mix(), np.random.default_rng((config.seed, 3))
        ),
    )

    def evaluate(step: int) -> Mapping[str, float]:
        return slot_accuracy(scene_run.objective, held, scene_run.model_config.mask_token_id)

    settings = loop_settings(config)
    return train(
        scene_run.objective.train(),
        optimizers(scene_run),
        batch,
        settings,
        scene_run.folder / "captions",
        evaluate=evaluate,
    )


def _features(
    split: str, first: int, count: int, scene_run: SceneRun, folder: Path
) -> SceneFeatures:
    cache = folder.parent / "features"
    return load_or_build(split, first, count, scene_run.atlas, scene_run.model, cache)


def _subject(scene: Scene) -> Subject:
    reference = compose(scene, np.random.default_rng((scene.seed, 5))).text
    return Subject(f"train-{scene.seed}", DEFAULT_QUESTION, reference, scene=("train", scene.seed))

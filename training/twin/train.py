"""Trains the autoregressive twin with the preparation, data, optimisers and loop of Stage I."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from pydantic import model_validator

from rediff_model.chat_template import DEFAULT_QUESTION, TextCodec, conversation
from training.config import SceneTraining
from training.loop.run_folder import alone
from training.loop.state import take_over
from training.loop.train import train
from training.scenes.canvases import Mix
from training.scenes.features import load_or_build
from training.scenes.new_model import prepare
from training.scenes.stage1 import align, loop_settings, optimizers
from training.twin.model import save
from training.twin.objective import TwinObjective, next_token_accuracy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from training.config import Phase
    from training.scenes.features import SceneFeatures
    from training.scenes.new_model import SceneRun
    from training.scenes.objective import SceneBatch

logger = logging.getLogger(__name__)

WEIGHTS = ("content_weight", "relation_weight", "place_weight")
"""What a phase may say besides its steps: nothing is masked or corrupted here."""


class TwinTraining(SceneTraining):
    """A twin of the embedded model, from the start; fields as in Stage I."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start_from is not None:
            raise ValueError(f"start_from is not for a twin, got {self.start_from}")
        if self.loss != "scenes":
            raise ValueError(f"loss must be scenes for a twin, got {self.loss!r}")
        if not self.model.qk_norm:
            raise ValueError("model.qk_norm must be true, as in transformers' Qwen3, got false")
        for phase in self.phases:
            if unused := sorted(phase.model_fields_set - {"steps", *WEIGHTS}):
                raise ValueError(f"a twin's phase has no {unused[0]}: nothing is masked")
        return self


@alone
def run(config: TwinTraining, folder: Path) -> Path:
    """Train, resuming whatever `folder` holds, and return the folder of the finished checkpoint."""
    if config.threads:
        torch.set_num_threads(config.threads)
    scene_run = prepare_twin(config, folder)
    features, validation = (
        load_or_build(
            split, first, count, scene_run.atlas, scene_run.model, folder.parent / "features"
        )
        for split, first, count in (
            ("train", config.data.first_seed, config.data.scenes),
            ("validation", 0, config.data.validation_scenes),
        )
    )
    if config.align_steps:
        align(scene_run, features)
    average = train_captions(scene_run, features, validation)
    take_over(scene_run.objective, average)
    checkpoint = folder / "checkpoint"
    done = {
        "steps": config.steps,
        "pictures_a_step": config.pictures,
        "wordings_a_picture": config.wordings,
        "scenes": config.data.scenes,
        "align_steps": config.align_steps,
    }
    save(scene_run.model, scene_run.tokenizer, done, checkpoint)
    return checkpoint


def prepare_twin(config: TwinTraining, folder: Path) -> SceneRun:
    """What Stage I begins with, the objective exchanged."""
    scene_run = prepare(config, folder)
    before, after = TextCodec(scene_run.tokenizer).encode_prompt(conversation([DEFAULT_QUESTION]))
    objective = TwinObjective(
        scene_run.model,
        before,
        after,
        compiled=config.compiled,
        places=any(phase.place_weight > 0 for phase in config.phases),
    )
    return replace(scene_run, objective=objective)


def train_captions(
    scene_run: SceneRun, features: SceneFeatures, validation: SceneFeatures
) -> dict[str, torch.Tensor]:
    """Train projector and language model on captions; the averaged weights."""
    config = scene_run.config

    def batch(step: int, part: int) -> SceneBatch:
        rng = np.random.default_rng((config.seed, 2, step, part))
        rows = rng.integers(0, len(features.scenes), config.pictures)
        return caption_batch(
            scene_run, features, rows, config.wordings, mix_of(config.phase_at(step)), rng
        )

    held = caption_batch(
        scene_run,
        validation,
        np.arange(len(validation.scenes)),
        1,
        mix_of(config.phases[-1]),
        np.random.default_rng((config.seed, 3)),
    )

    def evaluate(step: int) -> Mapping[str, float]:
        result = next_token_accuracy(twin_objective(scene_run), held)
        logger.info("step %d: %s", step, {key: round(value, 3) for key, value in result.items()})
        return result

    return train(
        scene_run.objective,
        optimizers(scene_run),
        batch,
        loop_settings(config),
        scene_run.folder / "captions",
        evaluate=evaluate,
    )


def caption_batch(
    scene_run: SceneRun,
    features: SceneFeatures,
    rows: np.ndarray,
    wordings: int,
    mix: Mix,
    rng: np.random.Generator,
) -> SceneBatch:
    """New captions of some scenes, each picture's `wordings` of them in turn."""
    scenes = [features.scenes[row] for row in rows]
    canvases = scene_run.canvases.build(scenes, wordings, mix, rng)
    return twin_objective(scene_run).as_batch(features.rows(rows), canvases)


def twin_objective(scene_run: SceneRun) -> TwinObjective:
    """The objective of a run that `prepare_twin` made."""
    assert isinstance(scene_run.objective, TwinObjective)
    return scene_run.objective


def mix_of(phase: Phase) -> Mix:
    """Whole captions: every token counts 1, and what the phase says of its kind."""
    weights = {name: getattr(phase, name) for name in WEIGHTS}
    return Mix(unmasked=True, clean_weight=1.0, end_weight=1.0, **weights)

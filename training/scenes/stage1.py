"""Stage I of an embedded model: from cached scene features to a checkpoint folder."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

from rediff_model.checkpoint import save
from training.loop.muon import Muon
from training.loop.run_folder import alone, claim
from training.loop.state import processes, take_over
from training.loop.train import LoopSettings, train
from training.scenes import cell_labels
from training.scenes.canvases import Mix
from training.scenes.features import SceneFeatures, load_or_build, load_or_build_maps
from training.scenes.finetune_tower import look_closer
from training.scenes.new_model import prepare
from training.scenes.objective import SceneBatch, slot_accuracy
from training.scenes.paper_losses import paper_canvases
from training.scenes.sharpen_tower import sharpen
from training.stickers.tokenizer import save as save_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch.optim import Optimizer

    from training.config import Phase, SceneTraining
    from training.scenes.canvases import Canvases
    from training.scenes.new_model import SceneRun
    from training.stickers.graph import Scene

logger = logging.getLogger(__name__)

ALIGN_PICTURES = 32
"""Pictures a step of the alignment."""
FREE = ("threads", "compiled", "save_every", "evaluate_every")
"""What may change when a run is resumed."""


@alone
def run(config: SceneTraining, folder: Path) -> Path:
    """Train, resuming whatever `folder` holds, and return the folder of the finished checkpoint.

    Raises:
        TrainConfigError: the run was begun with another configuration.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    group = processes()
    with group.main_process_first(), claim(folder, config, FREE):
        scene_run = prepare(config, folder)
    cache = folder.parent / "features"
    first, count, held = config.data.first_seed, config.data.scenes, config.data.validation_scenes
    atlas, model = scene_run.atlas, scene_run.model
    maps = None
    if config.tower_steps:
        with group.main_process_first():
            maps = load_or_build_maps("train", first, count, atlas, model, cache)
        sharpen(scene_run, maps)
    if config.sight is not None:
        maps = look_closer(scene_run, cache)
    with group.main_process_first():
        features = load_or_build("train", first, count, atlas, model, cache, maps)
        validation = load_or_build("validation", 0, held, atlas, model, cache)
    if config.start_from is None and config.align_steps:
        align(scene_run, features)
    average = train_captions(scene_run, features, validation) if config.phases else {}
    checkpoint = folder / "checkpoint"
    if group.is_main_process:
        export(scene_run, average, checkpoint)
    group.wait_for_everyone()
    return checkpoint


def align(scene_run: SceneRun, features: SceneFeatures) -> None:
    """Train the projector alone on the labels of the cells; the heads are thrown away."""
    config, projector = scene_run.config, cast("nn.Module", scene_run.model.model.mm_projector)
    side = scene_run.model_config.vision.patches_per_side
    objective = cell_labels.DenseObjective(
        projector, scene_run.model_config.language.hidden_size, len(scene_run.atlas.names)
    )

    def batch(step: int, part: int) -> cell_labels.DenseBatch:
        rows = np.random.default_rng((config.seed, 1, step, part)).integers(
            0, len(features.scenes), ALIGN_PICTURES
        )
        labels = cell_labels.dense_labels(
            [features.scenes[row] for row in rows], scene_run.atlas.names, side
        )
        return cell_labels.as_batch(features.rows(rows), labels)

    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, weight_decay=0.05)
    settings = LoopSettings(
        steps=config.align_steps, precision=config.precision, clip=100.0, parts=config.parts
    )
    average = train(objective, [optimizer], batch, settings, scene_run.folder / "align")
    with torch.no_grad():
        for name, value in projector.named_parameters():
            value.copy_(average[f"projector.{name}"])


def train_captions(
    scene_run: SceneRun, features: SceneFeatures, validation: SceneFeatures
) -> dict[str, torch.Tensor]:
    """Train projector and language model on captions, phase by phase."""
    config = scene_run.config

    def batch(step: int, part: int) -> SceneBatch:
        rng = np.random.default_rng((config.seed, 2, step, part))
        rows = rng.integers(0, len(features.scenes), config.pictures)
        scenes = [features.scenes[row] for row in rows]
        canvases = noised_canvases(scene_run, scenes, step, rng)
        return SceneBatch.of(features.rows(rows), canvases, scene_run.drawn_text(rng))

    rng = np.random.default_rng((config.seed, 3))
    held = SceneBatch.of(
        validation.rows(np.arange(len(validation.scenes))),
        scene_run.canvases.build(validation.scenes, 1, Mix(), rng),
    )

    def evaluate(step: int) -> Mapping[str, float]:
        result = slot_accuracy(scene_run.objective, held, scene_run.model_config.mask_token_id)
        logger.info("step %d: %s", step, {key: round(value, 3) for key, value in result.items()})
        return result

    settings = loop_settings(config)
    return train(
        scene_run.objective,
        optimizers(scene_run),
        batch,
        settings,
        scene_run.folder / "captions",
        evaluate=evaluate,
    )


def noised_canvases(
    scene_run: SceneRun, scenes: Sequence[Scene], step: int, rng: np.random.Generator
) -> Canvases:
    """Canvases of a step, with the configuration's mix and losses."""
    config = scene_run.config
    mix = mix_of(config.phase_at(step))
    if config.loss == "scenes":
        return scene_run.canvases.build(scenes, config.wordings, mix, rng)
    return paper_canvases(
        scene_run.canvases, scenes, config.wordings, mix, rng, config.loss, config.defects
    )


def loop_settings(config: SceneTraining) -> LoopSettings:
    """The loop of the caption phases."""
    return LoopSettings(
        steps=config.steps,
        warmup=config.warmup,
        schedule=config.schedule,
        tail=config.tail,
        clip=config.clip,
        ema=config.ema,
        parts=config.parts,
        precision=config.precision,
        save_every=config.save_every,
        evaluate_every=config.evaluate_every,
    )


def mix_of(phase: Phase) -> Mix:
    return Mix(**phase.model_dump(exclude={"steps"}))


def optimizers(scene_run: SceneRun) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for the layers' matrices, AdamW for the rest."""
    rates = scene_run.config.optimiser
    trained = [
        (name, value) for name, value in scene_run.model.named_parameters() if value.requires_grad
    ]
    matrices = [value for name, value in trained if ".layers." in name and value.ndim == 2]
    projector = [value for name, value in trained if "mm_projector" in name]
    apart = {id(value) for value in (*matrices, *projector)}
    others = [value for _, value in trained if id(value) not in apart]
    return [
        Muon(matrices, lr=rates.muon, weight_decay=rates.weight_decay),
        torch.optim.AdamW(
            [{"params": others, "lr": rates.adamw}, {"params": projector, "lr": rates.projector}],
            betas=(0.9, 0.98),
            weight_decay=rates.weight_decay,
        ),
    ]


def export(scene_run: SceneRun, average: Mapping[str, torch.Tensor], out: Path) -> None:
    """Write the checkpoint folder with averaged weights; the frozen tower in half precision."""
    take_over(scene_run.objective, average)
    cast("nn.Module", scene_run.model.tower).half()
    tokenizer_folder = scene_run.folder / "tokenizer"
    save_tokenizer(scene_run.tokenizer, tokenizer_folder)
    save(scene_run.model, scene_run.model_config, tokenizer_folder, out)

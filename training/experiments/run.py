"""Runs an experiment: trains what is missing, evaluates it, writes table, figures and plot.

Everything is kept: a branch that is finished is not trained again, nor is one decoded twice, so
that a killed run goes on and experiments share the branches they have in common.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rediff_model.checkpoint import CheckpointError, resolve
from rediff_model.files.atomic import write_json
from rediff_model.model import Captioner
from rediff_model.sampling.params import SamplerSettings
from training.config import SceneTraining
from training.scenes import stage1, stage2
from training.scenes.stage2 import SceneCorrection
from training.stickers.atlas import Atlas
from training.stickers.evaluate import decode, scene_prompts
from training.stickers.export import SEED_STRIDE
from training.stickers.sample import sample_scene
from training.stickers.score import METRICS, score, summarise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from training.experiments.plan import Branch, Experiment, Given, Size
    from training.stickers.graph import Scene

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished branch."""

    branch: Branch
    checkpoint: Path
    steps: int
    """Optimiser steps since the new model, over all branches it is made of."""
    seconds: float
    """Of its own training, drafts included; the sum of all runs if it was interrupted."""


def run(experiment: Experiment, size: Size, folder: Path) -> dict[str, Any]:
    """Train and evaluate; returns the figures, also written to `folder/<name>.json`.

    Raises:
        ValueError: the size leaves every branch out, or gives a checkpoint that is not there.
    """
    if size.threads:
        torch.set_num_threads(size.threads)
    experiment = experiment.without(size.left_out)
    branches = tuple(experiment.needed(size.given))
    given = {}
    for branch in branches:
        # What no branch can be trained with is to be named before the first is.
        if branch.name in size.given:
            given[branch.name] = _given(branch, size.given[branch.name])
        else:
            _configuration(branch, Path(branch.after) if branch.after else None, 0, size)
    outcomes: dict[str, Outcome] = {}
    for branch in branches:
        before = outcomes.get(branch.after) if branch.after else None
        outcomes[branch.name] = given.get(branch.name) or train_branch(branch, before, size, folder)
    atlas = Atlas.load()
    scenes = [
        [
            sample_scene(seed * SEED_STRIDE + index, atlas, split="test")
            for index in range(size.evaluation_scenes)
        ]
        for seed in size.evaluation_seeds
    ]
    rows = [
        row
        for name in experiment.shown
        for row in evaluate_branch(experiment, outcomes[name], size, scenes, atlas, folder)
    ]
    figures = {
        "experiment": experiment.name,
        "question": experiment.question,
        "size": size.label,
        "unit": size.unit,
        "evaluation": {"scenes": size.evaluation_scenes, "seeds": list(size.evaluation_seeds)},
        "branches": [
            {
                "name": outcome.branch.name,
                "label": outcome.branch.label,
                "recipe": outcome.branch.recipe,
                "after": outcome.branch.after,
                "steps": outcome.steps,
                "seconds": round(outcome.seconds, 1),
            }
            for outcome in outcomes.values()
        ],
        "rows": rows,
    }
    write_json(folder / f"{experiment.name}.json", figures)
    return figures


def _given(branch: Branch, given: Given) -> Outcome:
    """Raises ValueError, which names the branch, if its checkpoint is not there."""
    try:
        return Outcome(branch, resolve(given.checkpoint), given.steps, 0.0)
    except CheckpointError as error:
        raise ValueError(f"branch {branch.name}: {error}") from None


def train_branch(branch: Branch, before: Outcome | None, size: Size, folder: Path) -> Outcome:
    """Train a branch, or find it trained: branches are kept by what they were made with."""
    taken = before.steps if before else 0
    config = _configuration(branch, before.checkpoint if before else None, taken, size)
    own = config.steps * (config.rounds if isinstance(config, SceneCorrection) else 1)
    steps = own + taken
    home = folder / "branches" / f"{branch.recipe}-{_fingerprint(config, folder)}"
    note = home / "finished.json"
    if note.exists():
        noted = json.loads(note.read_text(encoding="utf-8"))
        return Outcome(branch, home / noted["checkpoint"], steps, noted["seconds"])
    logger.info("branch %s: %d steps", branch.name, own)
    home.mkdir(parents=True, exist_ok=True)
    spent_file = home / "seconds.json"
    spent = json.loads(spent_file.read_text(encoding="utf-8")) if spent_file.exists() else 0.0
    began = time.monotonic()
    try:
        if isinstance(config, SceneCorrection):
            with _shared_drafts(config, home, folder):
                checkpoint = stage2.run(config, home)
        else:
            checkpoint = stage1.run(config, home)
    finally:
        spent += time.monotonic() - began
        write_json(spent_file, spent)
    write_json(note, {"checkpoint": str(checkpoint.relative_to(home)), "seconds": spent})
    return Outcome(branch, checkpoint, steps, spent)


def _configuration(
    branch: Branch, start_from: Path | None, taken: int, size: Size
) -> SceneTraining:
    """Raises TrainConfigError, which names the branch, for values that do not fit."""
    kind = SceneCorrection if branch.recipe == "stage2" else SceneTraining
    return kind.parse(size.values(branch, start_from, taken), Path(f"branch {branch.name}"))


def evaluate_branch(
    experiment: Experiment,
    outcome: Outcome,
    size: Size,
    scenes: Sequence[Sequence[Scene]],
    atlas: Atlas,
    folder: Path,
) -> list[dict[str, Any]]:
    """One row a way of decoding: means with 95 % intervals over all scenes, and means by seed."""
    kept = folder / "rows" / f"{_name(outcome.checkpoint)}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    asked = hashlib.sha256(f"{size.evaluation_scenes} {size.evaluation_seeds}".encode()).hexdigest()
    captioner: Captioner | None = None
    prompts: list[list[Tensor]] = []
    rows = []
    for tokens in experiment.tokens_per_step:
        for refine in experiment.refine:
            for refresh in experiment.refresh:
                key = f"{asked[:8]} {tokens} {refine} {refresh}"
                if key not in known:
                    if captioner is None:
                        captioner = Captioner.load(str(outcome.checkpoint))
                        prompts = [scene_prompts(captioner, part, atlas) for part in scenes]
                    known[key] = _row(captioner, scenes, prompts, atlas, tokens, refine, refresh)
                    write_json(kept, known)
                rows.append({"branch": outcome.branch.name, **known[key]})
    return rows


def _name(checkpoint: Path) -> str:
    """A hash of all that its captions depend on: how it wants to be decoded counts, too."""
    digest = hashlib.sha256()
    for part in ("model.safetensors", "config.json", "tokenizer.json"):
        digest.update((checkpoint / part).read_bytes())
    return digest.hexdigest()[:10]


def _row(
    captioner: Captioner,
    scenes: Sequence[Sequence[Scene]],
    prompts: Sequence[Sequence[Tensor]],
    atlas: Atlas,
    tokens: int,
    refine: bool,
    refresh: int | None,
) -> dict[str, Any]:
    settings = SamplerSettings(
        canvas_length=captioner.config.canvas_length, tokens_per_step=tokens, refine=refine
    ).preferring(captioner.config.preferences)
    generations = [decode(captioner, part, settings, refresh) for part in prompts]
    scores = [
        [
            score(scene, captioner.decode(generation.ids), atlas.names)
            for scene, generation in zip(*pair, strict=True)
        ]
        for pair in zip(scenes, generations, strict=True)
    ]
    together = summarise([each for part in scores for each in part])
    by_seed = [summarise(part) for part in scores]
    row: dict[str, Any] = {
        "tokens_per_step": tokens,
        "refine": refine,
        "refresh": refresh,
        "forwards": float(np.mean([one.steps for part in generations for one in part])),
    }
    for metric in METRICS:
        interval = getattr(together, metric)
        row[metric] = {
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "by_seed": [getattr(summary, metric).mean for summary in by_seed],
        }
    return row


@contextmanager
def _shared_drafts(config: SceneCorrection, home: Path, folder: Path) -> Iterator[None]:
    """Branches that only differ in what comes after the first round's drafts draft once."""
    said = config.model_dump_json(
        include={
            "start_from",
            "seed",
            "precision",
            "data",
            "drafts",
            "block_lengths",
            "extra_refine_steps",
            "prefix_attention",
        },
        exclude_defaults=True,
    )
    drawn = hashlib.sha256(said.replace(str(folder), "").encode()).hexdigest()[:10]
    own, shared = home / "round-0" / "drafts.jsonl", folder / "drafts" / f"{drawn}.jsonl"
    for path in (own, shared):
        path.parent.mkdir(parents=True, exist_ok=True)
    if shared.exists() and not own.exists():
        shutil.copyfile(shared, own)
    yield
    # Nothing is drafted where nothing is corrected. Whole or not at all, for who comes next.
    if own.exists() and not shared.exists():
        part = shared.with_suffix(".part")
        shutil.copyfile(own, part)
        part.replace(shared)


def _fingerprint(config: SceneTraining, folder: Path) -> str:
    """Of everything that decides the weights, wherever the experiment's folder lies.

    What is at its default does not count, so that a new setting leaves old branches their names.
    """
    deciding = config.model_dump(
        mode="json",
        exclude={"threads", "compiled", "save_every", "evaluate_every"},
        exclude_defaults=True,
    )
    text = json.dumps(deciding, sort_keys=True).replace(str(folder), "")
    return hashlib.sha256(text.encode()).hexdigest()[:10]

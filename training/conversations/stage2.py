"""Stage II on conversations: draft, correct, filter, train, with plain files between."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from rediff_model.checkpoint import resolve
from rediff_model.files.atomic import write_json
from rediff_model.model import Captioner
from training.config import TrainConfigError
from training.conversations.batches import open_all, open_images, open_source
from training.conversations.stage1 import FREE, finish, objective_of, prepare
from training.correction.drafts import DraftSettings, picture_prompts, row_subjects, write_drafts
from training.correction.experts.build import chat_expert, free_expert
from training.correction.records import read_drafts
from training.correction.selection import filter_corrections
from training.correction.verdicts import correct
from training.data.mixture import Source
from training.data.problems import Report, listed
from training.data.row_files import RowFile
from training.loop.run_folder import alone, claim
from training.loop.state import processes, wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image

    from training.conversations.stage2_config import DialogueCorrection
    from training.correction.drafts import Subject
    from training.correction.records import Draft

logger = logging.getLogger(__name__)


@alone
def run(config: DialogueCorrection, folder: Path) -> Path:
    """Run all rounds, resuming whatever `folder` holds; the folder of the last checkpoint.

    Raises:
        TrainConfigError: the source of the drafts has too few rows; and see `run_round`.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    with processes().main_process_first():
        _require_rows(config)
    checkpoint = config.start_from
    for number in range(config.rounds):
        own = config.model_copy(update={"start_from": str(checkpoint)})
        checkpoint = str(run_round(own, folder / f"round-{number}", number))
    return folder / f"round-{config.rounds - 1}" / "checkpoint"


def run_round(config: DialogueCorrection, folder: Path, number: int) -> Path:
    """One round into `folder`: its files, and the checkpoint it ends in.

    Raises:
        TrainConfigError: a source cannot be used, nothing could be corrected, or the round was
            begun with another configuration.
        ExpertError: the expert cannot be used.
    """
    group = processes()
    free = (*FREE, "rounds", *free_expert(folder))
    report = Report()
    with group.main_process_first(), claim(folder, config, free):
        others = open_all(config.data, report, config.loss.confusion)
        resolve(config.start_from)
    # What is trained on must not change any more, such as by answers that come late.
    if group.is_main_process and not (folder / "captions").exists():
        collect(config, folder, number)
    wait_for(folder / "counts.json")
    group.wait_for_everyone()
    rows = RowFile(folder / "corrected.jsonl", report)
    if not len(rows):
        counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))["filter"]
        raise TrainConfigError(
            f"{rows.path} holds no corrected draft: {listed(counts) or 'no drafts'}"
        )
    share = config.correction_share
    whole = sum(source.weight for source in others)
    sources = [
        Source("corrections", rows, open_images(config.drafts.source, report), share),
        *(replace(other, weight=other.weight / whole * (1 - share)) for other in others),
    ]
    with group.main_process_first():
        dialogue = prepare(config, folder)
        objective = objective_of(dialogue)
    return finish(dialogue, objective, sources, report)


def collect(config: DialogueCorrection, folder: Path, number: int) -> None:
    """Draft, correct and filter the rows of a round.

    Writes `drafts.jsonl`, `verdicts.jsonl`, `corrected.jsonl` and, with counts, `counts.json`; what
    is wrong with rows and pictures goes to `problems.json`, before the expert is asked.

    Raises:
        TrainConfigError: the source has no rows left for this round.
        ExpertError: the expert cannot be used, which is known before anything is drafted where it
            can be, or left too much unanswered.
    """
    shape = config.drafts
    report = Report()
    source = open_source(shape.source, report)
    _tell(report, folder)
    first = number * shape.samples
    subjects = row_subjects(source.rows)[first : first + shape.samples]
    if not subjects:
        raise TrainConfigError(f"{shape.source.name} has no rows with pictures from {first} on")

    def picture_of(draft: Draft) -> Image.Image:
        return source.images.open(draft.image or "")

    tokenizer = Tokenizer.from_file(str(resolve(config.start_from) / "tokenizer.json"))
    expert = chat_expert(config.expert, tokenizer, picture_of, folder / "answers")
    _draft(config, folder, subjects, source, report)
    _tell(report, folder)
    drafts = read_drafts(folder / "drafts.jsonl")
    verdicts = folder / "verdicts.jsonl"
    counts = {
        "correct": dict(correct(drafts, expert, verdicts, progress=True)),
        "filter": dict(filter_corrections(drafts, verdicts, tokenizer, folder / "corrected.jsonl")),
        "expert": expert.usage(),
        "problems": report.to_json(),
    }
    logger.info("corrections: %s", {key: counts[key] for key in ("correct", "filter", "expert")})
    write_json(folder / "counts.json", counts)


def _require_rows(config: DialogueCorrection) -> None:
    """Count the rows for all rounds before the first has trained.

    Raises:
        TrainConfigError: the source cannot be used, or the last round would have nothing to draft.
    """
    shape = config.drafts
    rows = len(row_subjects(open_source(shape.source, Report()).rows))
    before = (config.rounds - 1) * shape.samples
    if rows <= before:
        raise TrainConfigError(
            f"{shape.source.name} has {rows} rows with pictures, which leaves round "
            f"{config.rounds - 1} without any: rounds {config.rounds}, drafts.samples "
            f"{shape.samples}"
        )
    if rows < before + shape.samples and processes().is_main_process:
        logger.warning(
            "%s has %d rows with pictures: the last round drafts %d instead of drafts.samples %d",
            shape.source.name, rows, rows - before, shape.samples,
        )  # fmt: skip


def _tell(report: Report, folder: Path) -> None:
    """Log the findings that are new, and keep all in the round's folder."""
    for problem in report.news():
        logger.warning("%s", problem)
    write_json(folder / "problems.json", report.to_json())


def _draft(
    config: DialogueCorrection,
    folder: Path,
    subjects: Sequence[Subject],
    source: Source,
    report: Report,
) -> None:
    """Write the drafts that are missing. The model is let go of again."""
    shape = config.drafts
    device = processes().device
    captioner = Captioner.load(
        resolve(config.start_from),
        device=device,
        dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
    )
    settings = DraftSettings(
        tokens_per_step=shape.tokens_per_step,
        every=shape.every,
        canvas_length=captioner.config.canvas_length,
        temperature=shape.temperature,
        seed=config.seed,
        batch_size=shape.batch_size,
        preferences=captioner.config.preferences,
    )
    write_drafts(
        captioner.model,
        captioner.token_ids,
        captioner.decode,
        subjects,
        picture_prompts(captioner, subjects, source.images, report),
        settings,
        folder / "drafts.jsonl",
        progress=True,
    )

"""Errors of a model's drafts beside those that Stage I makes: table, JSON and picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from rediff_model.checkpoint import read_config, resolve
from training.correction.records import RecordError, read_drafts
from training.scenes.canvases import CanvasBuilder
from training.scenes.errors import ERRORS, error_table, plot, synthetic
from training.stickers.sample import sample_scene
from training.stickers.tokenizer import SPECIAL_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.scenes.canvases import Mix
    from training.scenes.errors import ErrorRow
    from training.stickers.atlas import Atlas
    from training.stickers.graph import Scene

SYNTHETIC = "synthetic"


def compare(drafts: Path, model: str | Path, mix: Mix, atlas: Atlas, seed: int) -> list[ErrorRow]:
    """The errors of drafts by tokens a step, and of the drafted scenes' captions under `mix`.

    `model` is the checkpoint that drafted: its tokenizer is needed.

    Raises:
        RecordError: there are no drafts of scenes in the file.
        CheckpointError: there is no such checkpoint.
    """
    folder = resolve(model)
    config = read_config(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    scenes: dict[tuple[str, int], Scene] = {}
    sources: dict[str, list[tuple[Scene, Sequence[int]]]] = {}
    for draft in sorted(read_drafts(drafts), key=lambda draft: draft.tokens_per_step):
        if draft.scene is None:
            raise RecordError(f"{drafts}: draft {draft.key} is of no scene")
        split, number = draft.scene
        scene = scenes.setdefault(draft.scene, sample_scene(number, atlas, split=split))
        sources.setdefault(f"{draft.tokens_per_step} a step", []).append((scene, draft.ids))
    if not scenes:
        raise RecordError(f"{drafts} holds no drafts")
    builder = CanvasBuilder(
        tokenizer,
        atlas.names,
        length=config.canvas_length,
        mask_id=config.mask_token_id,
        stop_id=config.stop_token_id,
        special_ids=len(SPECIAL_TOKENS),
    )
    made = synthetic(builder, list(scenes.values()), mix, np.random.default_rng(seed))
    return error_table({**sources, SYNTHETIC: made}, tokenizer)


def as_text(rows: Sequence[ErrorRow]) -> str:
    """Errors a caption, a line for each kind and a column for each source, totals last."""
    names = list(dict.fromkeys(row.source for row in rows))
    figures = {(row.source, row.kind): row.per_caption for row in rows}
    lines = [["errors a caption", *names]]
    lines += [[kind, *(f"{figures[name, kind]:.3f}" for name in names)] for kind in ERRORS]
    totals = [sum(figures[name, kind] for kind in ERRORS) for name in names]
    lines.append(["all", *(f"{total:.3f}" for total in totals)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 1)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def write(rows: Sequence[ErrorRow], out: Path) -> None:
    """Write `errors.json` and `errors.png` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(row) for row in rows], indent=2)
    (out / "errors.json").write_text(text + "\n", encoding="utf-8")
    plot(rows, out / "errors.png")

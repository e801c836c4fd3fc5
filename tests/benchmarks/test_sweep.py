"""The sweep runs at a small size, scores what it should, and finds the best points."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from server_wire import serving

from benchmarks import sweep
from benchmarks.load import pictures
from benchmarks.outcomes import Outcome
from benchmarks.wire import Answer, Lost
from training.stickers.grammar import compose

if TYPE_CHECKING:
    from pathlib import Path


def outcome(place: int, caption: str, began: float, ended: float) -> Outcome:
    done = json.dumps({"caption": caption, "steps": 4 + place, "revisions": 2 * place})
    events = [(began + 0.5, "step", "{}"), (ended, "step", "{}"), (ended, "done", done)]
    return Outcome(began, began, ended, Answer(200, {}, b"", events), place)


def test_a_perfect_caption_scores_one_and_an_empty_one_nothing() -> None:
    scenes, files = pictures(2, first_seed=5)
    assert all(file.startswith(b"\x89PNG") for file in files)
    assert [scene.seed for scene in scenes] == [5, 6]
    text = compose(scenes[0], np.random.default_rng(0)).text
    figures = sweep.figures_of([outcome(0, text, 0, 2), outcome(1, "", 1, 5)], scenes)
    assert figures["captions_per_second"] == 2 / 5
    assert figures["latency_seconds"]["max"] == 4
    assert figures["first_step_seconds"]["max"] == 0.5
    assert (figures["steps"], figures["revisions"]) == (4.5, 1)
    assert figures["quality"]["coverage"]["mean"] == 0.5
    assert figures["quality"]["perfect"]["mean"] == 0.5


def test_a_caption_that_is_missing_ends_the_sweep() -> None:
    scenes, _ = pictures(1)
    lost = Outcome(0, 0, 1, Lost("timeout"))
    with pytest.raises(RuntimeError, match="1 requests got no caption, the first: lost: timeout"):
        sweep.figures_of([lost], scenes)


def test_the_front_holds_what_no_other_point_beats() -> None:
    points = [(1.0, 0.9), (2.0, 0.5), (2.0, 0.7), (1.5, 0.6), (3.0, 0.1), (0.5, 0.9)]
    assert sweep.front(points) == [(3.0, 0.1), (2.0, 0.7), (1.0, 0.9)]


def test_the_command_writes_a_row_a_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    small = "--n 3 --tokens-per-step 2 8 --presets rediff mask --concurrency 1 3"
    with serving() as address:
        files = ["--json", str(out), "--plot", str(plot)]
        sweep.main([*small.split(), *files, "--base-url", f"http://{address}"])
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    ways = [(row["preset"], row["tokens_per_step"], row["concurrency"]) for row in rows]
    assert ways == [
        (preset, tokens, callers)
        for preset in ("rediff", "mask")
        for tokens in (2, 8)
        for callers in (1, 3)
    ]
    assert [row["steps"] for row in rows] == [4, 4, 1, 1] * 2
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)
    assert plot.stat().st_size > 5000

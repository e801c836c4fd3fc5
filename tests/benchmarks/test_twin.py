"""The side-by-side benchmark runs at a small size and tells what it measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from tokenizers import Tokenizer

from benchmarks import sides, twin
from benchmarks.client import Seconds
from rediff_model.checkpoint import read_config
from rediff_model.model import Captioner, CaptionModel
from server.settings import EMBEDDED
from training.stickers.atlas import Atlas
from training.stickers.render import render
from training.stickers.sample import sample_scene
from training.twin.model import save

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained twin of the shipped model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("twin") / "checkpoint"
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    save(CaptionModel(read_config(EMBEDDED)), tokenizer, {"steps": 7}, folder)
    return folder


def test_the_command_writes_a_row_a_side(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    small = "--scenes 3 --speed 3 --single 2 --reference 1 --rounds 1 --batches 2 --canvas 8"
    twin.main([*small.split(), "--twin", str(checkpoint), "--json", str(out)])
    result = json.loads(out.read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [
        "engine, 1 a step",
        "reference, 1 a step",
        "engine, 4 a step",
        "reference, 4 a step",
        "engine, 8 a step",
        "reference, 8 a step",
        "engine, adaptive",
        "engine, careful",
        "twin, generate",
    ]
    for tokens in (1, 4, 8):
        # The checkpoint asks for up to four steps more.
        assert 8 // tokens < rows[f"engine, {tokens} a step"]["forwards"] <= 8 // tokens + 4
    assert rows["twin, generate"]["forwards"] == 8
    for name, row in rows.items():
        assert row.get("identical_fraction", 1) == 1, name
        assert ("quality" in row) is not name.startswith("reference"), name
        assert list(row["speed"]) == (["1"] if name.startswith("reference") else ["1", "2"]), name
        assert row["speed"]["1"]["latency_seconds"]["p50"] > 0, name
    assert rows["twin, generate"]["gflop"] < rows["engine, 1 a step"]["gflop"]
    assert result["twin_training"] == {"steps": 7}
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1


def test_prompts_are_those_that_the_captioner_makes_of_a_picture() -> None:
    captioner, atlas = Captioner.load(EMBEDDED), Atlas.load()
    scenes = [sample_scene(seed, atlas, split="test") for seed in (3, 4)]
    made = sides.our_prompts(captioner, sides.tower_features(captioner, scenes, atlas))
    pictures = captioner.image_features([render(scene, atlas) for scene in scenes])
    for prompt_PD, features_LD in zip(made, pictures, strict=True):
        torch.testing.assert_close(prompt_PD, captioner.prompt(features_LD))


def test_figures_are_medians_over_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by one second a caption, two in the second round."""
    now, calls = [0.0], []

    def caption(places: Sequence[int], batch: int) -> list[sides.Made]:
        calls.append((len(places), batch))
        now[0] += (2 if len(calls) > 4 else 1) * len(places)
        return [sides.Made((place,), 1) for place in places]

    monkeypatch.setattr(Seconds, "now", classmethod(lambda cls: cls(now[0], now[0])))
    side = sides.Side("one", caption, float, (1, 4))
    figures, captions = twin.measure_speed([side], twin.Counts(2, 6, 1), 2)
    assert calls == [(1, 1), (1, 1), (1, 1), (6, 4), (1, 1), (1, 1), (6, 4)]
    assert figures["one"]["4"]["captions_per_second"] == pytest.approx(1 / 1.5)
    assert figures["one"]["1"]["latency_seconds"]["max"] == 2
    assert [made.ids for made in captions["one"]] == [(0,), (1,)]

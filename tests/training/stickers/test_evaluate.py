"""The evaluation on scenes, with the checkpoint that ships."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rediff_model.chat_template import DEFAULT_QUESTION
from rediff_model.model import Captioner
from rediff_model.sampling.params import SamplerSettings
from training.stickers.atlas import Atlas
from training.stickers.evaluate import Row, evaluate_split, scene_prompts, table, write_captions
from training.stickers.export import scene_from_annotation
from training.stickers.grammar import compose
from training.stickers.sample import sample_scene
from training.stickers.score import METRICS, score, summarise

ROOT = Path(__file__).parents[3]
EMBEDDED = ROOT / "rediff_model" / "checkpoints" / "embedded"
ATLAS = Atlas.load()
EIGHT = SamplerSettings(tokens_per_step=8)


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.load(EMBEDDED)


def test_the_shipped_checkpoint_sees_the_picture(captioner: Captioner, tmp_path: Path) -> None:
    rows, scenes = evaluate_split(
        captioner, "test", 5, 6, ATLAS, [replace(EIGHT, refine=False), EIGHT]
    )
    assert [(row.tokens_per_step, row.refine) for row in rows] == [(8, False), (8, True)]
    for row in rows:
        assert 1 <= row.forwards <= 16
        assert set(row.metrics) == set(METRICS)
        assert row.metrics["coverage"]["low"] <= row.metrics["coverage"]["high"]
        # Chance would name one of 120 classes right in about 3 % of the cases.
        assert row.metrics["object_recall"]["mean"] > 0.3

    path = tmp_path / "captions.jsonl"
    write_captions(path, rows, scenes, "test")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 12
    again = [
        score(scene_from_annotation(line["annotation"]), line["caption"], ATLAS.names).coverage
        for line in lines[6:]
    ]
    assert sum(again) / 6 == pytest.approx(rows[1].metrics["coverage"]["mean"])
    assert len(table(rows).splitlines()) == 3


def test_scenes_are_asked_the_questions_in_turn(captioner: Captioner) -> None:
    scenes = [sample_scene(number, ATLAS, split="test") for number in range(3)]
    questions = (DEFAULT_QUESTION, "caption this")
    prompts = scene_prompts(captioner, scenes, ATLAS, questions)
    usual = scene_prompts(captioner, scenes, ATLAS)
    assert [torch.equal(*pair) for pair in zip(prompts, usual, strict=True)] == [True, False, True]


def test_the_documented_lines_score_captions_again(tmp_path: Path) -> None:
    scenes = [sample_scene(number, ATLAS, split="test") for number in range(8)]
    rows = []
    for tokens, spoilt in ((4, "red"), (8, "large")):
        texts = [compose(scene, np.random.default_rng(tokens)).text for scene in scenes]
        captions = tuple(text.replace(spoilt, "blue") for text in texts)
        scores = [
            score(scene, text, ATLAS.names) for scene, text in zip(scenes, captions, strict=True)
        ]
        metrics = asdict(summarise(scores))
        rows.append(Row(tokens, True, 9.0, captions, {}, metrics))
    write_captions(tmp_path / "captions.jsonl", rows, scenes, "test")
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    means = [row.metrics["coverage"]["mean"] for row in rows]
    assert done.stdout == f"4 True {means[0]}\n8 True {means[1]}\n"
    assert 0 < min(means) <= max(means) < 1


@pytest.mark.parametrize(
    ("count", "ways", "fault"), [(0, [EIGHT], "got 0"), (1, [], "no settings")]
)
def test_nothing_to_evaluate_is_an_error(
    captioner: Captioner, count: int, ways: list[SamplerSettings], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        evaluate_split(captioner, "test", 0, count, ATLAS, ways)
    with pytest.raises(ValueError, match="nowhere"):
        evaluate_split(captioner, "nowhere", 0, 1, ATLAS, [EIGHT])

"""`rediff data vicrit`, `rediff data errors`, and what `rediff train` says."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conversation_samples import write_checkpoint
from typer.testing import CliRunner

from rediff_model.checkpoint import resolve
from server.commands.app import app
from server.commands.options import CommandError
from training.correction.records import Draft, write_records
from training.data.problems import Report
from training.data.row_files import RowFile
from training.scenes.errors import ERRORS
from training.stickers.atlas import Atlas
from training.stickers.grammar import compose
from training.stickers.sample import sample_scene

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "rediff_model" / "checkpoints" / "embedded"


def vicrit_row(wrong: str, image: str = "a.jpg") -> dict[str, str]:
    return {
        "image": image,
        "original_caption": "A red fox on a plate.",
        "changed_caption": wrong,
    }


def test_vicrit_pairs_of_equal_token_count_are_kept(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    rows = [
        vicrit_row("A green fox on a plate."),
        vicrit_row("A red fox on a very large plate."),
        vicrit_row("A red fox on a plate."),
        {"image": "b.jpg"},
        vicrit_row("A half \ud800 fox."),
    ]
    given, out = tmp_path / "vicrit.jsonl", tmp_path / "new" / "rows.jsonl"
    given.write_text("\n".join([*map(json.dumps, rows), "{oops"]))
    result = CliRunner().invoke(
        app, ["data", "vicrit", str(given), "--out", str(out), "--model", str(base)]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == "1 rows; left out: 3 malformed, 1 identical, 1 unequal\n"
    told = {line.split(": ")[0] for line in result.stderr.splitlines()}
    assert told == {f"{given}:{line}" for line in (2, 3, 4, 5, 6)}
    command = ["data", "vicrit", str(out), "--out", str(out), "--model", str(base)]
    refused = CliRunner().invoke(app, command)
    assert "must go to another file" in str(refused.exception)
    report = Report()
    [row] = [RowFile(out, report).row(0)]
    assert report.summary() == "no problems"
    assert [(pair.org, pair.target) for pair in row.pairs] == [("green", "red")]


def test_vicrit_names_what_it_cannot_use_and_leaves_nothing_behind(tmp_path: Path) -> None:
    given, folder, lacks = tmp_path / "v.jsonl", tmp_path / "folder", tmp_path / "lacks"
    given.write_text(json.dumps(vicrit_row("A green fox on a plate.")))
    folder.mkdir()
    lacks.mkdir()
    (lacks / "config.json").write_text("{}")
    cases = [
        (given, folder, EMBEDDED, f"{folder} is a folder"),
        (given, tmp_path / "out.jsonl", lacks, f"{lacks} has no tokenizer.json"),
        (tmp_path / "none.jsonl", tmp_path / "out.jsonl", EMBEDDED, "none.jsonl"),
    ]
    for rows, out, model, fault in cases:
        command = ["data", "vicrit", str(rows), "--out", str(out), "--model", str(model)]
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, CommandError)
        assert fault in str(result.exception)
        assert {path.name for path in tmp_path.iterdir()} == {"v.jsonl", "folder", "lacks"}


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Right captions at 1 token a step, captions with a stutter at 8."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(resolve(EMBEDDED) / "tokenizer.json"))
    atlas = Atlas.load()
    found = []
    for seed in range(6):
        text = compose(sample_scene(seed, atlas), np.random.default_rng(seed)).text
        ids = tokenizer.encode(text).ids
        for tokens in (8, 1):
            own = [*ids[:4], ids[3], *ids[4:]] if tokens == 8 else ids
            found.append(
                Draft(
                    f"train-{seed}@{tokens}", "What?", text, tuple(own), tokenizer.decode(own),
                    tokens, scene=("train", seed),
                )
            )  # fmt: skip
    path = tmp_path_factory.mktemp("drafts") / "drafts.jsonl"
    write_records(path, [draft.to_json() for draft in found])
    return path


def test_errors_of_drafts_are_compared_with_the_synthetic(drafts: Path, tmp_path: Path) -> None:
    config = ROOT / "training" / "configs" / "embedded-cpu.yaml"
    command = ["data", "errors", str(drafts), "--out", str(tmp_path), "--config", str(config)]
    result = CliRunner().invoke(app, [*command, "--model", str(EMBEDDED)])
    assert result.exit_code == 0, result.output
    head, *lines = result.stdout.splitlines()
    assert head.split("  ")[0] == "errors a caption"
    assert [name in head for name in ("1 a step", "8 a step", "synthetic")] == [True] * 3
    table = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in lines}
    assert list(table) == [*ERRORS, "all"]
    assert table["all"][0] == 0
    assert table["all"][1] > 0
    assert table["all"][2] > 0
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "errors.json").read_text())
    assert len(rows) == 3 * len(ERRORS)


def test_bad_files_are_told_in_a_line(drafts: Path, tmp_path: Path) -> None:
    code = "import sys; from server.cli import main; main()"
    (tmp_path / "drafts.jsonl").write_text("{}\n")
    configs = ROOT / "training" / "configs"
    config, sight = str(configs / "embedded-cpu.yaml"), str(configs / "embedded-576-cpu.yaml")
    cases = [
        (["errors", str(tmp_path / "drafts.jsonl"), "--config", config], "drafts.jsonl:1"),
        (["errors", str(drafts), "--config", "none.yaml"], "no training configuration"),
        (["errors", str(drafts), "--config", sight], f"{sight}: phases is empty"),
        (["vicrit", str(tmp_path / "none.jsonl"), "--model", str(EMBEDDED)], "none.jsonl"),
    ]
    for arguments, fault in cases:
        result = subprocess.run(
            [sys.executable, "-c", code, "data", *arguments, "--out", str(tmp_path / "out")],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 1
        assert fault in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("client", ["httpx", "httpx2"])
def test_training_is_quiet_about_the_requests_of_its_expert(
    client: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.NOTSET, client)
    command = ["train", "stage2", "--config", str(tmp_path / "no"), "--out", str(tmp_path)]
    CliRunner().invoke(app, command)
    assert not logging.getLogger(client).isEnabledFor(logging.INFO)

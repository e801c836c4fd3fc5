"""`rediff score`: tables, files and errors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from server.commands.app import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    (tmp_path / "captions.json").write_text('{"a.png": "A red cat sits.", "b.png": ""}')
    return tmp_path / "captions.json"


def test_text_alone(
    captions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "scores.json"
    command = ["rediff", "score", "text", "--predictions", str(captions), "--json", str(out)]
    monkeypatch.setattr("sys.argv", command)
    assert run() == 0
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert table["empty"] == ["0.5000", "(0.0000", "to", "1.0000)"]
    assert table["captions"] == ["2"]
    written = json.loads(out.read_text())
    assert written["scores"]["words"] == {"value": 2.0, "low": 0.0, "high": 4.0}
    assert written["counts"] == {"captions": 2}


def test_text_against_references(
    captions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    references = tmp_path / "references.jsonl"
    references.write_text(
        '{"id": "a.png", "caption": "a red cat sits"}\n{"id": "c.png", "caption": "a dog"}\n'
    )
    command = ["rediff", "score", "text", "--predictions", str(captions)]
    monkeypatch.setattr("sys.argv", [*command, "--references", str(references)])
    assert run() == 0
    table = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert table["rouge_l"] == "0.5000"
    assert table["references_without_caption"] == table["captions_without_reference"] == "1"
    references.write_text('{"id": "x.png", "caption": "a"}\n')
    monkeypatch.setattr("sys.argv", [*command, "--references", str(references)])
    assert run() == 1
    assert "'a.png' and 'x.png' are their first ones" in capsys.readouterr().err


def test_a_result_file_of_caparena(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    battle = {
        "source1": "ours",
        "source2": "GPT-4o-0806",
        "caption1": "a b",
        "caption2": "c",
        "ref_model": "GPT-4o-0806",
        "judge": "**Caption 1 is better**",
    }
    results.write_text(json.dumps([battle]))
    command = ["rediff", "score", "caparena", "--results", str(results)]
    monkeypatch.setattr("sys.argv", command)
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["average", "0.17"]
    assert lines[-2:] == [f"{'words':<26}       2.00", f"{'won':<26}          1"]
    monkeypatch.setattr("sys.argv", [*command, "--as-published"])
    assert run() == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:2] == ["average", "0.00"]


def test_objects_of_coco(
    captions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    annotations = tmp_path / "objects.json"
    annotations.write_text('{"a.png": ["dog"]}')
    command = ["rediff", "score", "chair", "--predictions", str(captions)]
    monkeypatch.setattr("sys.argv", [*command, "--annotations", str(annotations)])
    assert run() == 0
    table = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert table["chair_i"] == table["chair_s"] == "1.0000"
    assert table["captions"] == table["captions_without_annotation"] == "1"
    annotations.write_text('{"z.png": ["dog"]}')
    assert run() == 1
    assert "is annotated, such as 'a.png'" in capsys.readouterr().err


def test_a_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, flag in (("text", "--predictions"), ("caparena", "--results")):
        gone = tmp_path / "gone.json"
        monkeypatch.setattr("sys.argv", ["rediff", "score", name, flag, str(gone)])
        assert run() == 1
        assert "gone.json" in capsys.readouterr().err

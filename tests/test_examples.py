"""The programs of examples/, each run as its docstring says against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from pyarrow import parquet
from server_fakes import DEFAULT_CAPTION, png
from server_wire import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as address:
        yield f"http://{address}"


def run(name: str, *arguments: str) -> None:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text()
    names = [path.name for path in EXAMPLES.glob("*.py")]
    assert len(names) == 4
    assert all(f'"{name}"' in tested for name in names)


def test_a_data_set_of_the_hub(server: str, tmp_path: Path) -> None:
    count = 20
    image = [{"bytes": png(6, 4 + number), "path": f"{number}.png"} for number in range(count)]
    (tmp_path / "data").mkdir()
    for name, rows in (("0.parquet", image[:17]), ("1.parquet", image[17:])):
        parquet.write_table(pa.table({"image": rows}), tmp_path / "data" / name)
    out = tmp_path / "captions.jsonl"
    run("caption_hub_dataset.py", str(tmp_path / "data"), str(out), server)
    assert lines(out) == [
        {"row": row, "caption": DEFAULT_CAPTION, "confidence": 0.5} for row in range(count)
    ]


@pytest.mark.parametrize(("least", "sure"), [("0.4", True), ("0.6", False)])
def test_doubtful_captions_are_set_apart(
    server: str, tmp_path: Path, least: str, sure: bool
) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "notes.txt").write_text("no picture")
    run("filter_by_confidence.py", str(tmp_path), least, server)
    found = lines(tmp_path / "sure.jsonl"), lines(tmp_path / "doubtful.jsonl")
    line = {"file": "a.png", "caption": DEFAULT_CAPTION, "confidence": 0.5}
    assert found == (
        ([line], []) if sure else ([], [line | {"doubtful": DEFAULT_CAPTION.split()[:3]}])
    )


def test_captions_are_corrected(server: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    rows = [
        {"file": "a.png", "caption": "two green apples on grass", "source": "web"},
        {"file": "a.png", "caption": DEFAULT_CAPTION, "source": "hand"},
    ]
    source, out = tmp_path / "captions.jsonl", tmp_path / "corrected.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("correct_captions.py", str(source), str(out), server)
    assert [row["caption"] for row in lines(out)] == [DEFAULT_CAPTION] * 2
    assert [row["changed"] for row in lines(out)] == [[["green", "red"]], []]
    assert [row["source"] for row in lines(out)] == ["web", "hand"]


def test_a_folder_for_a_lora(server: str, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "duck 1.png").write_bytes(png())
    run(
        "lora_folder.py",
        str(tmp_path / "pictures"),
        str(tmp_path / "out"),
        "ohwx duck",
        "10",
        server,
    )
    folder = tmp_path / "out" / "10_ohwx duck"
    assert sorted(path.name for path in folder.iterdir()) == ["duck 1.png", "duck 1.txt"]
    assert (folder / "duck 1.txt").read_text() == f"ohwx duck, {DEFAULT_CAPTION}\n"
    assert (folder / "duck 1.png").read_bytes() == png()

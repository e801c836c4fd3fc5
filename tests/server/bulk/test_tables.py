"""Captions in one file, made from the journal at the end."""

from __future__ import annotations

import csv
import json
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow.parquet
import pytest
from bulk_case import KnownCaptioner, full_disk, item, run_over, write_pictures

from server.bulk.inputs import Inputs
from server.bulk.item import BulkError, Item, Unreadable
from server.bulk.outputs import Doubt
from server.bulk.tables import COLUMNS, Table, TableFormat, journal_path

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

NAMES = ["a.png", "b, b.png", "bad.png", "dim.png", "e.png"]
FORMATS: tuple[TableFormat, ...] = ("jsonl", "json", "csv", "parquet")


def table(path: Path, *, least: float | None = None, overwrite: bool = False) -> Table:
    kind = path.suffix.removeprefix(".")
    doubtful = None if least is None else path.with_stem("doubtful")
    for table_format in FORMATS:
        if table_format == kind:
            return Table(
                path, doubtful, Doubt(least), table_format, {"model": "m"}, overwrite=overwrite
            )
    raise AssertionError(kind)


def rows(path: Path) -> list[dict[str, Any]]:
    """What a program that knows the format reads, numbers of csv as numbers."""
    if path.suffix == ".parquet":
        found: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        return found
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as stream:
        return [
            row
            | {"confidence": float(row["confidence"])}
            | {name: int(row[name]) for name in ("revisions", "steps")}
            for row in csv.DictReader(stream)
        ]


@pytest.fixture
def pictures(tmp_path: Path) -> Inputs:
    return Inputs(tuple(write_pictures(tmp_path / "set", NAMES)))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_rows_have_confidence_and_revisions_in_the_order_of_the_inputs(
    tmp_path: Path, pictures: Inputs, kind: str
) -> None:
    path = tmp_path / f"out.{kind}"
    _, failures = run_over(pictures, table(path))
    assert [name for name, _, _ in failures] == ["bad.png"]
    found = rows(path)
    assert [tuple(row) for row in found] == [COLUMNS] * 4
    assert [row["id"] for row in found] == ["a.png", "b, b.png", "dim.png", "e.png"]
    assert found[1] == {
        "id": "b, b.png",
        "source": str(tmp_path / "set" / "b, b.png"),
        "caption": "caption of b, b.png",
        "confidence": 0.75,
        "revisions": 1,
        "steps": 2,
        "finish_reason": "stop",
        "warning": "",
    }
    assert not journal_path(path).exists()


def test_json_maps_ids_to_captions(tmp_path: Path, pictures: Inputs) -> None:
    run_over(pictures, table(tmp_path / "out.json"))
    captions = json.loads((tmp_path / "out.json").read_text())
    names = [name for name in NAMES if "bad" not in name]
    assert captions == {name: f"caption of {name}" for name in names}


def test_json_without_captions_is_an_empty_object(tmp_path: Path) -> None:
    run_over([], table(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == {}


def test_two_pictures_of_one_id_are_told_where_ids_are_all_there_is(tmp_path: Path) -> None:
    inputs = Inputs(tuple(write_pictures(tmp_path, ["a/x.png", "b/x.png"])))
    _, failures = run_over(inputs, table(tmp_path / "out.json"))
    assert [reason for _, _, reason in failures] == [
        f"its id x.png is that of {tmp_path / 'a' / 'x.png'}"
    ]
    _, failures = run_over(inputs, table(tmp_path / "out.jsonl"))
    assert failures == []


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("results", range(6))
def test_a_run_that_stopped_goes_on_to_the_same_file(
    tmp_path: Path, pictures: Inputs, kind: str, results: int
) -> None:
    whole, path = tmp_path / f"whole.{kind}", tmp_path / f"out.{kind}"
    run_over(pictures, table(whole))
    first, second = KnownCaptioner(stops_after=results), KnownCaptioner()
    output = table(path)
    if results < len(NAMES):
        with pytest.raises(BulkError, match="the engine ended"):
            run_over(pictures, output, first)
        output.close()
        assert not path.exists()
        tally, _ = run_over(pictures, table(path), second)
        assert tally.captions + tally.skipped == 4
        assert len(second.asked) == len(NAMES) - tally.skipped
    else:
        run_over(pictures, output, first)
    assert path.read_bytes() == whole.read_bytes()


def test_doubtful_rows_go_to_the_second_file(tmp_path: Path, pictures: Inputs) -> None:
    path = tmp_path / "out.jsonl"
    run_over(pictures, table(path, least=0.5), min_confidence=0.5)
    assert [row["id"] for row in rows(path)] == ["a.png", "b, b.png", "e.png"]
    assert [row["id"] for row in rows(tmp_path / "doubtful.jsonl")] == ["dim.png"]


def test_killed_between_the_two_files_a_run_goes_on_to_both(
    tmp_path: Path, pictures: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    monkeypatch.setattr(Table, "_write", lambda *_: _killed())
    with pytest.raises(KeyboardInterrupt):
        run_over(pictures, (first := table(path, least=0.5)))
    first.close()
    monkeypatch.undo()
    (tmp_path / "doubtful.jsonl").write_text("of the first run\n")
    tally, _ = run_over(pictures, table(path, least=0.5))
    assert tally.captions == 0
    assert [row["id"] for row in rows(tmp_path / "doubtful.jsonl")] == ["dim.png"]
    assert len(rows(path)) == 3


def _killed() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", FORMATS)
def test_names_that_are_no_utf8_are_written_and_stay_apart(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"out.{kind}"
    odd = [Item(f"{end}.png", f"{end}.png", end, ".png") for end in ("\udcff", "\udcfe")]
    run_over([*odd, Unreadable("x", "gone")], table(path))
    names = [r"\udcff.png", r"\udcfe.png"]
    if kind == "json":
        assert list(json.loads(path.read_text())) == names
    else:
        assert [(row["id"], row["source"]) for row in rows(path)] == [(n, n) for n in names]


ODD = [
    "a\rb",
    "a\nb",
    "a\r\nb",
    'say "no"',
    "a,b;c",
    "=1+1",
    "+a",
    "-a",
    "@a",
    " b ",
    "\t",
    "'",
    "\u2028",
]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_names_and_captions_of_any_text_come_back_as_they_were(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"out.{kind}"
    run_over([Item(f"{name}.png", name, str(n), ".png") for n, name in enumerate(ODD)], table(path))
    found = rows(path)
    assert [row["id"] for row in found] == ODD
    assert [row["source"] for row in found] == [f"{name}.png" for name in ODD]
    assert [row["caption"] for row in found] == [f"caption of {name}" for name in ODD]
    if kind == "csv":
        data = path.read_bytes()
        # Nothing that a reader may take for the end of a row stands outside quotes.
        assert b'\n"a\rb","a\rb.png"' in data
        assert data.endswith(b",\n")
        assert b"\r\n" not in data.replace(b'"a\r\nb', b"").replace(b"of a\r\nb", b"")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_pipe_is_written_through_and_nothing_lies_beside_it(
    tmp_path: Path, pictures: Inputs, kind: str
) -> None:
    path, whole = tmp_path / "out" / f"pipe.{kind}", tmp_path / f"whole.{kind}"
    path.parent.mkdir()
    run_over(pictures, table(whole))
    os.mkfifo(path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    run_over(pictures, table(path))
    reader.join()
    assert read == [whole.read_bytes()]
    assert path.is_fifo()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_link_stays_one_and_its_file_is_replaced(
    tmp_path: Path, pictures: Inputs, kind: str
) -> None:
    path, whole = tmp_path / f"out.{kind}", tmp_path / f"whole.{kind}"
    (tmp_path / "disk").mkdir()
    run_over(pictures, table(whole))
    path.symlink_to(tmp_path / "disk" / "real")
    for _ in range(2):
        run_over(pictures, table(path, overwrite=True))
        assert path.is_symlink()
        assert (tmp_path / "disk" / "real").read_bytes() == whole.read_bytes()
    assert [one.name for one in (tmp_path / "disk").iterdir()] == ["real"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("size", [60, 600])
def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(
    tmp_path: Path, pictures: Inputs, kind: str, size: int
) -> None:
    whole, path = tmp_path / f"whole.{kind}", tmp_path / f"out.{kind}"
    run_over(pictures, table(whole))
    with full_disk(size):
        output = table(path)
        with pytest.raises(OSError, match="File too large"):
            run_over(pictures, output)
        # Whoever cannot write the rest of a row cannot do it later either.
        with suppress(OSError):
            output.close()
    assert not path.exists()
    tally, _ = run_over(pictures, table(path))
    assert (tally.skipped > 0) == (size > 500)
    assert path.read_bytes() == whole.read_bytes()


def test_beginning_anew_forgets_the_rows(tmp_path: Path, pictures: Inputs) -> None:
    path = tmp_path / "out.jsonl"
    stopped = table(path)
    with pytest.raises(BulkError):
        run_over(pictures, stopped, KnownCaptioner(stops_after=3))
    stopped.close()
    captioner = KnownCaptioner()
    run_over(_first(pictures), table(path, overwrite=True), captioner)
    assert captioner.asked == ["a.png"]
    assert len(rows(path)) == 1


def _first(inputs: Inputs) -> Iterable[Item]:
    return [item(inputs.paths[0])]

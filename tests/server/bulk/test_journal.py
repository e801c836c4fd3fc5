"""The journal of a run: cut anywhere it goes on, and it belongs to one run with one order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rediff_model.files.lock import Locked
from server.bulk.item import BulkError
from server.bulk.tables import Journal

if TYPE_CHECKING:
    from pathlib import Path

HEAD = {"model": "m", "sampling": {"steps": 2}, "wording": ("", "")}
ROWS: list[dict[str, Any]] = [
    {"source": "a.png", "caption": "one\ntwo"},
    {"source": "\udcff.png", "caption": "ünï"},
]


def write(path: Path) -> None:
    journal = Journal(path, HEAD, overwrite=True)
    for row in ROWS:
        journal.append(row)
    journal.close()


def test_cut_at_any_byte_it_keeps_the_whole_rows_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path)
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        journal = Journal(path, HEAD, overwrite=False)
        kept = max(0, sum(end <= length for end in ends) - 1)
        assert list(journal.rows()) == ROWS[:kept]
        assert journal.sources == {row["source"] for row in ROWS[:kept]}
        for row in ROWS[kept:]:
            journal.append(row)
        journal.close()
        assert path.read_bytes() == whole


def test_blocks_lost_with_the_power_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(20) + b"\n" + whole)
    journal = Journal(path, HEAD, overwrite=False)
    assert list(journal.rows()) == ROWS
    journal.close()


def test_another_order_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path)
    with pytest.raises(BulkError, match=r"begun with sampling \{'steps': 2\}, now it is \{\}"):
        Journal(path, HEAD | {"sampling": {}}, overwrite=False)
    journal = Journal(path, HEAD | {"sampling": {}}, overwrite=True)
    assert list(journal.rows()) == []
    journal.close()


def test_two_runs_do_not_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path)
    journal = Journal(path, HEAD, overwrite=False)
    with pytest.raises(Locked, match="is in use by another process"):
        Journal(path, HEAD, overwrite=True)
    assert list(journal.rows()) == ROWS
    journal.remove()
    assert not path.exists()

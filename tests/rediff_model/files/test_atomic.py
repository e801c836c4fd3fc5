"""Files that are written whole, and what killed runs leave."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from bulk_case import full_disk

from rediff_model.files.atomic import replacing, sweep, temporary_in, write_text

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_text(path, "old")
    with suppress(RuntimeError), replacing(path) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("out", "old")]
    with replacing(path) as stream:
        stream.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_folders_are_made_and_the_longest_names_fit(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / ("x" * 251 + ".txt")
    write_text(path, "text")
    assert path.read_text() == "text"


def test_only_temporaries_of_the_dead_are_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [tmp_path / f".rediff-{os.getppid()}.tmp", tmp_path / "rediff-1.tmp"]
    for path in (*kept, temporary_in(tmp_path), tmp_path / f".rediff-{dead.pid}.tmp"):
        path.touch()
    sweep(tmp_path)
    # What bears this process's number is of an earlier one that had it.
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    sweep(tmp_path / "missing")


def test_a_full_disk_leaves_nothing_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with full_disk(10), pytest.raises(OSError, match="File too large") as caught:
        write_text(path, "x" * 100)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []

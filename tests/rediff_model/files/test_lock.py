"""Locks keep a second process out, and end with the first."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rediff_model.files.lock import Locked, folder_lock, lock

if TYPE_CHECKING:
    from pathlib import Path

HOLDER = """
import sys
from pathlib import Path
from rediff_model.files.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_locked_until_its_process_ends(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(Locked, match=f"{tmp_path} is in use by process {first.pid};"),
            folder_lock(tmp_path),
        ):
            pass
        first.kill()
    with folder_lock(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_file_is_locked_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    with path.open("a+b") as first, path.open("a+b") as second:
        lock(first, path)
        with pytest.raises(Locked, match=f"{path} is in use by another process"):
            lock(second, path)
        first.close()
        lock(second, path)


def test_a_file_system_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with folder_lock(tmp_path):
        pass
    assert f"{tmp_path} cannot be locked ([Errno 37] No locks available)" in caplog.text

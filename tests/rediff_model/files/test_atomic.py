"""Files and folders that are written whole, and what killed runs leave."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from bulk_case import full_disk

from rediff_model.files import atomic
from rediff_model.files.atomic import (
    is_direct,
    replacing,
    replacing_folder,
    sweep,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from pathlib import Path


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_text(path, "old")
    with suppress(RuntimeError), replacing(path) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert contents(tmp_path) == {"out": "old"}
    with replacing(path) as stream:
        stream.write(b"new")
        assert path.read_text() == "old"
    assert contents(tmp_path) == {"out": "new"}


def test_two_files_of_a_folder_are_written_at_a_time(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "b") as other:
        one.write(b"1")
        other.write(b"2")
        sweep(tmp_path)
    assert contents(tmp_path) == {"a": "1", "b": "2"}


def test_folders_are_made_and_the_longest_names_fit(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / ("x" * 251 + ".txt")
    write_json(path, {"a": ["ü"]})
    assert path.read_text() == '{\n  "a": [\n    "\\u00fc"\n  ]\n}\n'


def test_only_temporaries_of_the_dead_are_swept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [
        tmp_path / f".rediff-{os.getppid()}-0a-0b.tmp",
        tmp_path / f".rediff-{os.getpid()}-{atomic._RUN}-0b.tmp",
        tmp_path / "rediff-1.tmp",
    ]
    swept = [
        # What bears this process's number is of an earlier one that had it.
        tmp_path / f".rediff-{os.getpid()}-0a-0b.tmp",
        tmp_path / f".rediff-{dead.pid}-0a-0b.tmp",
        tmp_path / f".rediff-{dead.pid}.tmp",
    ]
    for path in (*kept, *swept):
        path.touch()
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    sweep(tmp_path / "missing")


def test_a_temporary_that_another_machine_swept_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    real = os.fchmod
    swept: list[Path] = []

    def fchmod(descriptor: int, mode: int) -> None:
        real(descriptor, mode)
        if not swept:
            swept.extend(tmp_path.glob(".rediff-*"))
            swept[0].unlink()

    path.write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fchmod", fchmod)
        write_text(path, "new")
    assert contents(tmp_path) == {"a.txt": "new"}


def test_a_full_disk_leaves_nothing_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with full_disk(10), pytest.raises(OSError, match="File too large") as caught:
        write_text(path, "x" * 100)
    assert caught.value.filename == str(path)
    with full_disk(10), pytest.raises(OSError, match="File too large"), replacing(path) as stream:
        stream.write(b"x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_another_files_error_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a"):
        (tmp_path / "gone").read_text()
    assert caught.value.filename == str(tmp_path / "gone")


def test_the_mode_of_a_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(0o600)
    write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    plain = tmp_path / "plain"
    plain.touch()
    write_text(tmp_path / "other", "new")
    assert (tmp_path / "other").stat().st_mode == plain.stat().st_mode


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "there").write_text("old")
    for name in ("there", "new"):
        link, far = tmp_path / f"{name}.txt", tmp_path / f"{name}.far"
        far.symlink_to(f"disk/{name}")
        link.symlink_to(far)
        write_text(link, name)
        assert link.is_symlink()
        assert far.is_symlink()
    assert contents(tmp_path / "disk") == {"there": "there", "new": "new"}
    (tmp_path / "nowhere").symlink_to(tmp_path / "unmounted" / "file")
    with pytest.raises(FileNotFoundError) as caught:
        write_text(tmp_path / "nowhere", "new")
    assert caught.value.filename == str(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="symbolic links") as circle:
        write_text(tmp_path / "circle", "new")
    assert circle.value.filename == str(tmp_path / "circle")


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join()
    assert read == ["through"]
    assert pipe.is_fifo()
    assert is_direct(pipe)
    assert not any(map(is_direct, (tmp_path, tmp_path / "new", tmp_path / "new" / "file")))


def test_devices_stay_devices(tmp_path: Path) -> None:
    for name in ("null", "full"):
        (tmp_path / name).symlink_to(f"/dev/{name}")
    write_text(tmp_path / "null", "gone")
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(tmp_path / "full", "x")
    assert caught.value.filename == str(tmp_path / "full")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert {path.name for path in tmp_path.iterdir() if path.is_symlink()} == {"null", "full"}


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_an_open_descriptor_goes_on_where_it_is(tmp_path: Path, name: str) -> None:
    """As `program --report /dev/stdout > file`: what others write there is kept, in order."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    program = (
        "import os, sys; from pathlib import Path; from rediff_model.files import atomic\n"
        "os.write(1, b'before '); assert atomic.is_direct(Path(sys.argv[1]))\n"
        "atomic.write_text(Path(sys.argv[1]), 'report '); os.write(1, b'after')"
    )
    out = tmp_path / "out"
    with out.open("wb") as stream:
        inode = os.fstat(stream.fileno()).st_ino
        name = str(tmp_path / name)
        subprocess.run([sys.executable, "-c", program, name], stdout=stream, check=True)
    assert out.read_text() == "before report after"
    assert out.stat().st_ino == inode
    assert subprocess.check_output([sys.executable, "-c", program, name]) == b"before report after"


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
        for path, reason in (
            (tmp_path / "socket", "No such device or address"),
            (tmp_path / "file" / "a", "Not a directory"),
            (tmp_path / "folder", "Is a directory"),
            (tmp_path / ("x" * 300), "File name too long"),
        ):
            with pytest.raises(OSError, match=reason) as caught:
                write_text(path, "x")
            assert caught.value.filename == str(path)
    assert {path.name for path in tmp_path.iterdir()} == {"socket", "file", "folder"}


def test_a_folder_that_is_read_only_is_named_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(temporary: Path, _: Path) -> None:
        # A test that runs as root may write anywhere.
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(temporary))

    monkeypatch.setattr(atomic, "_create", refused)
    with pytest.raises(OSError, match="Read-only file system") as caught:
        write_text(tmp_path / "a.txt", "new")
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "set"
    with replacing_folder(folder) as fresh:
        (fresh / "a").write_text("1")
        assert not folder.exists()
    assert contents(folder) == {"a": "1"}
    with suppress(RuntimeError), replacing_folder(folder) as fresh:
        (fresh / "b").write_text("half")
        raise RuntimeError
    assert contents(folder) == {"a": "1"}
    link = tmp_path / "link"
    link.symlink_to(folder)
    with replacing_folder(link) as fresh:
        (fresh / "b").write_text("2")
    assert link.is_symlink()
    assert contents(folder) == {"b": "2"}
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a").write_text("1")
    with pytest.raises(OSError), replacing_folder(folder) as fresh:  # noqa: PT011
        fresh.rmdir()
    assert contents(folder) == {"a": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["set"]

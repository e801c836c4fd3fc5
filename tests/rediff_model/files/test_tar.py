"""One reader of tar files for captions and training."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from rediff_model.files.tar import members
from server.bulk.inputs import Inputs
from server.bulk.item import Item
from training.data.archive import members as training_members
from training.data.problems import Report

if TYPE_CHECKING:
    from pathlib import Path


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            out.addfile(entry, io.BytesIO(name.encode()))
    return buffer.getvalue()


def test_archives_joined_end_to_end_are_one(tmp_path: Path) -> None:
    shard = tmp_path / "both.tar"
    shard.write_bytes(archive("a.png") + archive("b.png", "c.png"))
    served = list(Inputs((shard,)))
    trained = list(training_members([shard], Report()))
    assert [item.member for item in served if isinstance(item, Item)] == ["a.png", "b.png", "c.png"]
    assert [one.read() for one in trained] == [b"a.png", b"b.png", b"c.png"]


def test_what_follows_the_end_and_is_no_archive_is_an_error(tmp_path: Path) -> None:
    shard = tmp_path / "tail.tar"
    shard.write_bytes(archive("a.png") + b"x" * 700)
    report = Report()
    assert [one.name for one in training_members([shard], report)] == ["a.png"]
    assert report.counts["malformed"] == 1
    with pytest.raises(tarfile.ReadError):
        list(members(shard))


def test_a_negative_size_ends_the_reading(tmp_path: Path) -> None:
    shard = tmp_path / "negative.tar"
    header = tarfile.TarInfo("b.png")
    header.size = -512
    shard.write_bytes(archive("a.png")[:1024] + header.tobuf(tarfile.GNU_FORMAT))
    report = Report()
    assert [one.name for one in training_members([shard], report)] == ["a.png"]
    assert report.counts["malformed"] == 1


@pytest.mark.parametrize("extra", ["._000.jpg", "x/._000.jpg", "__MACOSX/000.jpg", ".DS_Store"])
def test_files_that_macos_adds_are_left_out(tmp_path: Path, extra: str) -> None:
    shard = tmp_path / "mac.tar"
    shard.write_bytes(archive(extra, "000.jpg"))
    assert [member.name for member in members(shard)] == ["000.jpg"]


def test_an_archive_cut_within_a_header_is_an_error(tmp_path: Path) -> None:
    shard = tmp_path / "cut.tar"
    shard.write_bytes(archive("a.png", "b.png")[: 1024 + 100])
    with pytest.raises(tarfile.ReadError, match="byte 1024"):
        list(members(shard))

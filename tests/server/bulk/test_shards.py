"""Webdataset shards out: read back, cut anywhere and gone on with."""

from __future__ import annotations

import json
import tarfile
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from bulk_case import KnownCaptioner, captioned, full_disk, item, png, run_over, write_pictures

from rediff_model.files.lock import Locked
from server.bulk.inputs import Inputs
from server.bulk.item import BulkError
from server.bulk.outputs import Doubt
from server.bulk.shards import Shards, holds_any, shards_in

if TYPE_CHECKING:
    from pathlib import Path

NAMES = [f"p{number}.png" for number in range(5)]
PART = "part.rediff"


def shards(
    folder: Path, size: int = 2, doubtful: Path | None = None, *, overwrite: bool = False
) -> Shards:
    doubt = Doubt(None if doubtful is None else 0.5)
    return Shards(folder, doubtful, doubt, size, 10_000, overwrite=overwrite)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def pictures(tmp_path: Path) -> Inputs:
    return Inputs(tuple(write_pictures(tmp_path / "set", NAMES)))


def test_samples_are_a_picture_its_caption_and_its_row(tmp_path: Path, pictures: Inputs) -> None:
    out = tmp_path / "out"
    run_over(pictures, shards(out))
    assert sorted(contents(out)) == ["000000.tar", "000001.tar", "000002.tar"]
    with tarfile.open(out / "000001.tar") as archive:
        members = {member.name: archive.extractfile(member) for member in archive}
        found = {name: stream.read() for name, stream in members.items() if stream is not None}
    assert list(found) == [f"0000000{n}.{end}" for n in (2, 3) for end in ("png", "txt", "json")]
    assert found["00000002.png"] == png(2)
    assert found["00000003.txt"] == b"caption of p3.png"
    row = captioned("p3.png").row(item(pictures.paths[3]))
    assert json.loads(found["00000003.json"]) == row
    assert len(list(Inputs(tuple(shards_in(out))))) == 5


def test_a_part_cut_at_any_byte_goes_on_to_the_same_shard(tmp_path: Path) -> None:
    pictures = Inputs(tuple(write_pictures(tmp_path / "set", NAMES[:2])))
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_over(pictures, shards(whole))
    expected = (whole / "000000.tar").read_bytes()
    out.mkdir()
    # A sample is three members of a header and one block of data or two.
    for length in [*range(0, len(expected), 256), 511, 513, len(expected) - 1]:
        for path in out.iterdir():
            path.unlink()
        (out / PART).write_bytes(expected[:length])
        captioner = KnownCaptioner()
        run_over(pictures, shards(out), captioner)
        assert contents(out) == {"000000.tar": expected}, length
        samples = (len(expected) - 1024) // 2
        assert len(captioner.asked) == 2 - min(2, length // samples)


@pytest.mark.parametrize("results", range(5))
def test_a_run_that_stopped_goes_on_to_the_same_shards(
    tmp_path: Path, pictures: Inputs, results: int
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_over(pictures, shards(whole))
    stopped = shards(out)
    with pytest.raises(BulkError):
        run_over(pictures, stopped, KnownCaptioner(stops_after=results))
    stopped.close()
    assert holds_any(out)
    run_over(pictures, shards(out))
    assert contents(out) == contents(whole)
    captioner = KnownCaptioner()
    run_over(pictures, shards(out), captioner)
    assert captioner.asked == []
    assert contents(out) == contents(whole)


def test_doubtful_pictures_have_shards_of_their_own(tmp_path: Path) -> None:
    pictures = Inputs(tuple(write_pictures(tmp_path / "set", ["a.png", "dim.png", "b.png"])))
    out, doubtful = tmp_path / "out", tmp_path / "doubtful"
    run_over(pictures, shards(out, 2, doubtful), min_confidence=0.5)
    assert list(contents(out)) == list(contents(doubtful)) == ["000000.tar"]
    captioner = KnownCaptioner()
    run_over(pictures, shards(out, 2, doubtful), captioner)
    assert captioner.asked == []


def test_a_picture_that_is_gone_by_then_is_told(tmp_path: Path, pictures: Inputs) -> None:
    pictures.paths[1].unlink()
    _, failures = run_over(pictures, shards(tmp_path / "out"))
    assert [(name, reason) for name, _, reason in failures] == [
        ("p1.png", "No such file or directory")
    ]
    assert len(list(Inputs(tuple(shards_in(tmp_path / "out"))))) == 4


def test_beginning_anew_removes_shards_and_nothing_else(tmp_path: Path, pictures: Inputs) -> None:
    out = tmp_path / "out"
    run_over(pictures, shards(out))
    (out / "mine.tar").write_bytes(b"")
    run_over(Inputs(pictures.paths[:1]), shards(out, overwrite=True))
    assert list(contents(out)) == ["000000.tar", "mine.tar"]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    first = shards(tmp_path / "out")
    with pytest.raises(Locked, match="is in use by another process"):
        shards(tmp_path / "out")
    first.close()


@pytest.mark.parametrize("size", [100, 4000])
def test_a_full_disk_ends_a_run_that_goes_on_when_there_is_room(
    tmp_path: Path, pictures: Inputs, size: int
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_over(pictures, shards(whole))
    output = shards(out)
    with full_disk(size):
        with pytest.raises(OSError, match="File too large"):
            run_over(pictures, output)
        with suppress(OSError):
            output.close()
    tally, _ = run_over(pictures, shards(out))
    assert tally.skipped == (size > 3072)
    assert contents(out) == contents(whole)

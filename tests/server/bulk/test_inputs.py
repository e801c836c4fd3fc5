"""Which pictures a data set has, in which order, and what they are called."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet
import pytest
from bulk_case import png, write_pictures, write_tar

from server.bulk.inputs import Inputs
from server.bulk.item import BulkError, Item, PictureError, Unreadable, read

if TYPE_CHECKING:
    from server.bulk.inputs import Naming


def names(inputs: Inputs) -> list[str]:
    return [one.name if isinstance(one, Item) else one.reason for one in inputs]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(
        tmp_path / "set",
        ["b.JPG", "a.png", "deep/er/e.webp", "deep/d.jpeg", "._a.png", ".hidden/h.png", "c.raw"],
    )
    (tmp_path / "set" / "notes.txt").write_text("no picture")
    return tmp_path / "set"


def test_a_folder_gives_its_pictures_in_order(folder: Path) -> None:
    assert names(Inputs((folder,))) == ["a.png", "b.JPG"]
    everything = Inputs((folder,), recursive=True)
    assert names(everything) == ["a.png", "b.JPG", "deep/d.jpeg", "deep/er/e.webp"]
    assert everything.count() == 4


def test_a_folder_of_a_phone_passes_no_picture_over(tmp_path: Path) -> None:
    pictures = ["a.avif", "b.GIF", "c.tiff", "d.tif", "e.bmp", "f.jfif", "g.HEIC", "h.heif"]
    write_pictures(tmp_path, [*pictures, "i.mov", "j.aae"])
    assert names(Inputs((tmp_path,))) == pictures


def test_patterns_replace_the_suffixes(folder: Path) -> None:
    assert names(Inputs((folder,), globs=("*.raw", "b*"))) == ["b.JPG", "c.raw"]
    deep = Inputs((folder,), recursive=True, globs=("deep/*.webp",))
    assert names(deep) == ["deep/er/e.webp"]


def test_links_are_followed_and_every_folder_is_walked_once(folder: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "mnt", ["coco/x.png", "blob"])
    (folder / "coco").symlink_to(tmp_path / "mnt" / "coco")
    (folder / "l.png").symlink_to(tmp_path / "mnt" / "blob")
    for circle, target in {"again": str(folder), "deep/up": "..", "twin": "deep"}.items():
        (folder / circle).symlink_to(target)
    (tmp_path / "link").symlink_to(folder)
    expected = ["a.png", "b.JPG", "l.png", "coco/x.png", "deep/d.jpeg", "deep/er/e.webp"]
    for root in (folder, tmp_path / "link"):
        assert names(Inputs((root,), recursive=True)) == expected
        assert names(Inputs((root,))) == expected[:3]


def test_links_that_lead_nowhere_are_told(folder: Path, tmp_path: Path) -> None:
    (folder / "coco").symlink_to(tmp_path / "unmounted")
    (folder / "g.png").symlink_to(tmp_path / "gone.png")
    (folder / "round").symlink_to("round")
    found = list(Inputs((folder,), recursive=True))
    lost = [one for one in found if isinstance(one, Unreadable)]
    assert {(one.source, one.reason) for one in lost} == {
        (str(folder / name), "it is a link that leads nowhere") for name in ("coco", "round")
    }
    # A picture fails by itself.
    assert "g.png" in names(Inputs((folder,)))


def test_folders_may_be_deeper_than_calls_may(tmp_path: Path) -> None:
    # Python allows a thousand calls below each other.
    deepest = tmp_path
    for _ in range(1100):
        deepest /= "d"
        deepest.mkdir()
    (picture,) = write_pictures(deepest, ["a.png"])
    try:
        assert names(Inputs((tmp_path,), recursive=True)) == ["d/" * 1100 + "a.png"]
    finally:
        # Nor can others remove so deep a folder.
        picture.unlink()
        while deepest != tmp_path:
            deepest.rmdir()
            deepest = deepest.parent


@pytest.mark.parametrize(
    ("naming", "name"), [("path", "deep/d.jpeg"), ("name", "d.jpeg"), ("stem", "d")]
)
def test_pictures_are_called_as_asked(folder: Path, naming: Naming, name: str) -> None:
    inputs = Inputs((folder,), recursive=True, globs=("*.jpeg",), naming=naming)
    (found,) = inputs
    assert isinstance(found, Item)
    assert (found.name, found.relative) == (name, "deep/d")


def test_a_list_has_a_path_a_line(folder: Path) -> None:
    listing = folder / "list"
    listing.write_bytes(b"x/a.png\n\n/data/b c.jpg\r\n\xff.png")
    inputs = Inputs(lists=(listing,))
    found = [one for one in inputs if isinstance(one, Item)]
    assert [one.source for one in found] == ["x/a.png", "/data/b c.jpg", "\udcff.png"]
    assert [one.relative for one in found] == ["x/a", "data/b c", "\udcff"]
    assert inputs.count() == 3


@pytest.mark.parametrize(
    ("line", "relative"),
    [
        ("../pics/a.png", "pics/a"),
        ("../../a.png", "a"),
        ("x/../../b.v2.png", "b.v2"),
        ("./c.png", "c"),
        ("/data/../d.png", "d"),
        ("..", ""),
        (".", ""),
        ("/", ""),
    ],
)
def test_paths_of_a_list_that_go_up_stay_below_the_outputs(
    tmp_path: Path, line: str, relative: str
) -> None:
    (tmp_path / "list").write_text(line + "\n")
    (found,) = Inputs(lists=(tmp_path / "list",))
    assert isinstance(found, Item)
    assert (found.source, found.name, found.relative) == (str(Path(line)), line, relative)


def test_a_mark_before_the_first_path_is_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a.png\n", encoding="utf-8-sig")
    (found,) = Inputs(lists=(tmp_path / "list",))
    assert found.source == "a.png"


def test_a_list_from_a_pipe_is_not_read_to_be_counted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert Inputs((tmp_path,), lists=(tmp_path / "pipe",)).count() is None


def test_a_misspelt_folder_is_refused_and_a_picture_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(BulkError, match="picturs: No such file or directory"):
        Inputs((tmp_path / "picturs",)).check()
    gone = Inputs((tmp_path / "gone.png",))
    gone.check()
    assert names(gone) == ["gone.png"]


def test_a_shard_gives_the_first_picture_of_each_sample(tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    write_tar(
        shard,
        {
            "0.txt": b"text",
            "0.png": png(1),
            "0.mask.png": png(2),
            "in/1.v2.JPG": png(3),
            "2.json": b"{}",
        },
    )
    found = [one for one in Inputs((shard,)) if isinstance(one, Item)]
    assert [one.name for one in found] == ["0", "in/1"]
    assert [read(one, 1000) for one in found] == [png(1), png(3)]
    assert [one.identity for one in found] == [f"{shard}#0.png", f"{shard}#in/1.v2.JPG"]
    assert Inputs((shard,)).count() == 2


@pytest.mark.parametrize("length", [0, 100, 512 + 20, 1024, 1024 + 20, 1536 + 20])
def test_a_shard_that_was_cut_gives_what_lies_before_and_is_told(
    tmp_path: Path, length: int
) -> None:
    shard = tmp_path / "0.tar"
    write_tar(shard, {"0.png": png(1), "1.png": png(2)})
    shard.write_bytes(shard.read_bytes()[:length])
    found = list(Inputs((shard,)))
    assert isinstance(found[-1], Unreadable)
    assert found[-1].source == str(shard)
    pictures = [one for one in found if isinstance(one, Item)]
    assert len(pictures) == (length > 512) + (length > 1536)
    if length >= 1024:
        assert read(pictures[0], 1000) == png(1)
    if (pictures and length < 1024) or length > 1536:
        with pytest.raises(PictureError, match="the shard ends within the picture"):
            read(pictures[-1], 1000)


def test_links_in_a_shard_are_told(tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    with tarfile.open(shard, "w") as archive:
        for name, kind in {
            "a": tarfile.LNKTYPE,
            "b": tarfile.SYMTYPE,
            "c": tarfile.DIRTYPE,
        }.items():
            link = tarfile.TarInfo(f"{name}.png")
            link.type = kind
            link.linkname = "x.png"
            archive.addfile(link)
    found = [one for one in Inputs((shard,)) if isinstance(one, Unreadable)]
    assert [one.source for one in found] == [f"{shard}#a.png", f"{shard}#b.png"]
    assert {one.reason for one in found} == {
        "the shard holds a link or a sparse file in place of the picture"
    }


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([("b.png", tarfile.REGTYPE, -512)], "a member has -512 bytes"),
        ([("b", tarfile.GNUTYPE_LONGNAME, 2**70)], "cannot fit"),
        ([("b", tarfile.XHDTYPE, 0)] * 2000, "recursion"),
    ],
)
def test_a_shard_made_to_harm_is_a_broken_one(
    tmp_path: Path, headers: list[tuple[str, bytes, int]], reason: str
) -> None:
    content = [tarfile.TarInfo("a.png").tobuf()]
    for name, kind, size in headers:
        header = tarfile.TarInfo(name)
        header.type, header.size = kind, size
        content.append(header.tobuf(tarfile.GNU_FORMAT))
    shard = tmp_path / "0.tar"
    shard.write_bytes(b"".join(content) + bytes(1024))
    picture, broken = Inputs((shard,))
    assert isinstance(picture, Item)
    assert isinstance(broken, Unreadable)
    assert broken.reason.startswith("the shard is broken: ")
    assert reason in broken.reason


@pytest.mark.parametrize("as_struct", [False, True])
def test_parquet_gives_the_bytes_of_its_rows(tmp_path: Path, as_struct: bool) -> None:
    def cell(shade: int) -> Any:
        return {"bytes": png(shade), "path": None} if as_struct else png(shade)

    table = {"image": [cell(1), None, cell(2)], "key": ["a", "b", "c"], "n": [1, 2, 3]}
    path = tmp_path / "set.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    inputs = Inputs((path,), id_column="key")
    inputs.check()
    assert names(inputs) == ["a", "the row holds no bytes of a picture", "c"]
    found = [one for one in inputs if isinstance(one, Item)]
    assert [read(one, 1000) for one in found] == [png(1), png(2)]
    assert found[0].suffix == ".png"
    assert names(Inputs((path,)))[0] == "00000000"
    assert inputs.count() == 3


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (pyarrow.array(["a", None, ""]), ["a", "00000001", "00000002"]),
        (pyarrow.array([7, None, 0]), ["7", "00000001", "0"]),
        (pyarrow.array([1.5, None, float("nan")]), ["1.5", "00000001", "00000002"]),
        (pyarrow.array([b"x", "\u00fc".encode(), None]), ["x", "\u00fc", "00000002"]),
        (pyarrow.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pyarrow.nulls(3), ["00000000", "00000001", "00000002"]),
    ],
)
def test_ids_of_parquet_are_text_or_the_number_of_the_row(
    tmp_path: Path, keys: Any, expected: list[str]
) -> None:
    path = tmp_path / "set.parquet"
    images = [png(shade) for shade in range(3)]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "key": keys}), path)
    inputs = Inputs((path,), id_column="key")
    inputs.check()
    assert names(inputs) == expected
    found = [one for one in inputs if isinstance(one, Item)]
    assert [one.identity for one in found] == [f"{path}#{row:08d}" for row in range(3)]


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.string()])
def test_an_id_of_parquet_that_is_no_text_costs_its_row_alone(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "set.parquet"
    keys = pyarrow.array([b"a", b"x\xff", b"b"]).view(kind)
    pyarrow.parquet.write_table(pyarrow.table({"image": [png(1)] * 3, "key": keys}), path)
    assert names(Inputs((path,), id_column="key")) == [
        "a",
        "its id is bytes that are no UTF-8",
        "b",
    ]


def test_ids_of_parquet_that_are_lists_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": [png(1)], "key": [["a"]]}), path)
    with pytest.raises(BulkError, match=r"ids of column 'key' must be text or numbers, not list"):
        Inputs((path,), id_column="key").check()


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"picture": [png(1)]}), path)
    with pytest.raises(BulkError, match="has no column 'image', only picture"):
        Inputs((path,)).check()


def test_broken_parts_are_told_and_do_not_stop_the_others(tmp_path: Path) -> None:
    broken = tmp_path / "a.parquet"
    broken.write_bytes(b"no parquet")
    (picture,) = write_pictures(tmp_path, ["p.png"])
    inputs = Inputs((broken, picture), lists=(tmp_path / "gone",))
    found = list(inputs)
    assert [isinstance(one, Unreadable) for one in found] == [True, False, True]
    with pytest.raises(BulkError, match="gone: No such file"):
        inputs.check()


def test_reading_is_bounded_and_waits_for_no_pipe(tmp_path: Path) -> None:
    (picture,) = write_pictures(tmp_path, ["p.png"])
    os.mkfifo(tmp_path / "pipe.png")
    found = [one for one in Inputs((tmp_path,)) if isinstance(one, Item)]
    with pytest.raises(PictureError, match="above the limit of 9 bytes"):
        read(found[0], 9)
    with pytest.raises(PictureError, match="it is a pipe"):
        read(found[1], 9)
    picture.unlink()
    with pytest.raises(PictureError, match="No such file"):
        read(found[0], 9)

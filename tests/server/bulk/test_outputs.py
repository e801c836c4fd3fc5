"""A text file for every picture."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from bulk_case import KnownCaptioner, item, run_over, write_pictures

from server.bulk.inputs import Inputs
from server.bulk.item import Item
from server.bulk.outputs import Doubt, Sidecars


def sidecars(
    folder: Path | None = None,
    doubtful: Path | None = None,
    least: float | None = None,
    *,
    overwrite: bool = False,
) -> Sidecars:
    return Sidecars(folder, doubtful, Doubt(least), overwrite=overwrite)


def texts(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.txt"))
    }


def test_captions_lie_beside_the_pictures_and_are_not_made_again(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png", "bad.png", "in/c.v2.jpg"])
    inputs = Inputs((tmp_path,), recursive=True)
    tally, failures = run_over(inputs, sidecars())
    expected = {"a.txt": "caption of a.png\n", "in/c.v2.txt": "caption of in/c.v2.jpg\n"}
    assert texts(tmp_path) == expected
    assert failures == [("bad.png", str(tmp_path / "bad.png"), "it is bad")]
    (tmp_path / "a.txt").write_text("mine")
    captioner = KnownCaptioner()
    tally, _ = run_over(inputs, sidecars(), captioner)
    assert captioner.asked == ["bad.png"]
    assert (tally.captions, tally.skipped, tally.failed) == (0, 2, 1)
    assert texts(tmp_path) == expected | {"a.txt": "mine"}
    run_over(inputs, sidecars(overwrite=True))
    assert texts(tmp_path) == expected


def test_a_folder_of_sidecars_has_the_shape_of_the_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", ["a.png", "in/b.png"])
    run_over(Inputs((tmp_path / "set",), recursive=True), sidecars(tmp_path / "out"))
    assert texts(tmp_path / "out") == {
        "a.txt": "caption of a.png\n",
        "in/b.txt": "caption of in/b.png\n",
    }


@pytest.mark.parametrize("apart", [False, True])
def test_doubtful_captions_go_elsewhere_and_count_as_done(tmp_path: Path, apart: bool) -> None:
    write_pictures(tmp_path / "set", ["a.png", "dim.png"])
    inputs = Inputs((tmp_path / "set",))
    doubtful = tmp_path / "doubtful" if apart else None
    tally, _ = run_over(inputs, sidecars(None, doubtful, 0.5), min_confidence=0.5)
    assert (tally.captions, tally.doubtful) == (2, 1)
    other = "doubtful/dim.txt" if apart else "set/dim.doubtful.txt"
    assert texts(tmp_path) == {other: "caption of dim.png\n", "set/a.txt": "caption of a.png\n"}
    tally, _ = run_over(inputs, sidecars(None, doubtful, 0.5))
    assert tally.skipped == 2
    # With another limit the caption moves; there are never two.
    run_over(inputs, sidecars(None, doubtful, 0.1, overwrite=True), min_confidence=0.1)
    assert list(texts(tmp_path)) == ["set/a.txt", "set/dim.txt"]


def test_pictures_that_would_share_a_sidecar_are_told_in_every_run(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.jpg", "a.png"])
    for _ in range(2):
        _, failures = run_over(Inputs((tmp_path,)), sidecars())
        assert [name for name, _, _ in failures] == ["a.png"]
        assert f"that of {tmp_path / 'a.jpg'}" in failures[0][2]
    assert texts(tmp_path) == {"a.txt": "caption of a.jpg\n"}


def test_no_sidecar_lands_outside_its_folder(tmp_path: Path) -> None:
    evil = Item("s.tar", "x", "../../x", ".png", member="../../x.png")
    rooted = Item("s.tar", "y", "/y".lstrip("/"), ".png", member="/y.png")
    _, failures = run_over([evil, rooted], sidecars(tmp_path / "out"))
    assert failures == [
        ("x", "s.tar#../../x.png", "its name leads out of the folder of the sidecars")
    ]
    assert texts(tmp_path) == {"out/y.txt": "caption of y\n"}


def test_paths_of_a_list_that_go_up_have_sidecars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path, ["pics/a.png", "b.png", "work/in/c.png"])
    (tmp_path / "work" / "list").write_text("../pics/a.png\n../b.png\nin/../in/c.png\n..\n/\n")
    monkeypatch.chdir(tmp_path / "work")
    inputs = Inputs(lists=(Path("list"),))
    _, failures = run_over(inputs, sidecars())
    assert [(name, reason) for name, _, reason in failures] == [
        ("..", "its name leads out of the folder of the sidecars"),
        ("/", "its name leads out of the folder of the sidecars"),
    ]
    beside = ["b.txt", "pics/a.txt", "work/in/c.txt"]
    assert list(texts(tmp_path)) == beside
    run_over(inputs, sidecars(Path("out")))
    assert list(texts(tmp_path / "work" / "out")) == ["b.txt", "in/c.txt", "pics/a.txt"]
    assert list(texts(tmp_path / "pics")) == ["a.txt"]


def test_a_sidecar_that_is_no_plain_file_costs_its_picture_alone(tmp_path: Path) -> None:
    made = write_pictures(tmp_path, ["a.png", "b.png", "c.png", "d.png"])
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.txt").symlink_to("/dev/null")
    (tmp_path / "kept").write_text("old")
    (tmp_path / "c.txt").symlink_to("kept")
    (tmp_path / "d.txt").symlink_to("new")
    tally, failures = run_over(map(item, made), sidecars(overwrite=True))
    assert [reason.rpartition(": ")[2] for _, _, reason in failures] == ["it is no plain file"] * 2
    assert tally.captions == 2
    assert (tmp_path / "kept").read_text() == "caption of c.png\n"
    assert (tmp_path / "new").read_text() == "caption of d.png\n"
    assert all((tmp_path / f"{name}.txt").is_symlink() for name in "bcd")


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    member = Item("s.tar", "x", "x", ".png", member="x.png")
    assert "name a folder with --out" in str(sidecars().refusal(member))
    assert "would be the file itself" in str(sidecars().refusal(item(Path("a.txt"))))


def test_a_picture_named_twice_is_captioned_once(tmp_path: Path) -> None:
    (path,) = write_pictures(tmp_path, ["a.png"])
    captioner = KnownCaptioner()
    tally, failures = run_over([item(path), item(path)], sidecars(), captioner)
    assert (captioner.asked, tally.skipped, failures) == (["a.png"], 1, [])


def test_a_name_that_no_sidecar_can_have_costs_its_picture_alone(tmp_path: Path) -> None:
    out, long = tmp_path / "out", "x" * 251
    (out / "t.txt").mkdir(parents=True)
    (out / "in").write_text("no folder")
    made = write_pictures(tmp_path / "set", [f"{long}.png", "in/b.png", "t.png", "z.png"])
    root, nul = item(Path("/")), Item("s.tar", "n", "a\0b", ".png", member="n.png")
    below = [Item(str(path), path.stem, path.stem, ".png") for path in made]
    below[1] = Item(str(made[1]), "b", "in/b", ".png")
    nameless = Item("s.tar", "", "", ".png", member=".png")
    tally, failures = run_over([root, nameless, nul, *below], sidecars(out, None, 0.5))
    assert [reason.rpartition(": ")[2] for _, _, reason in failures] == [
        "its name leads out of the folder of the sidecars",
        "its name leads out of the folder of the sidecars",
        "embedded null byte",
        "File name too long",
        "Not a directory",
        "it is a folder",
    ]
    assert tally.captions == 1
    assert (out / "z.txt").read_text() == "caption of z\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set"]


def test_a_name_that_is_too_long_for_a_new_folder_costs_its_picture_alone(tmp_path: Path) -> None:
    long = Item("s.tar", "x", "new/" + "x" * 252, ".png", member="x.png")
    fits = Item("s.tar", "y", "new/y", ".png", member="y.png")
    _, failures = run_over([long, fits], sidecars(tmp_path / "out"))
    assert [reason.rpartition(": ")[2] for _, _, reason in failures] == ["File name too long"]
    assert texts(tmp_path) == {"out/new/y.txt": "caption of y\n"}


def test_a_folder_that_cannot_be_written_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (picture,) = write_pictures(tmp_path, ["a.png"])

    def forbidden(path: Path, text: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("server.bulk.outputs.write_text", forbidden)
    with pytest.raises(PermissionError, match=r"a\.txt"):
        run_over([item(picture)], sidecars())

"""What is said of inputs without a picture."""

from __future__ import annotations

from pathlib import Path

from bulk_case import write_pictures, write_tar

from server.bulk.inputs import Inputs, nothing_found


def test_a_folder_tells_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["in/b.png", "c.PNG", "d.PNG"])
    for name in ("0.tar", "1.tar", "README", ".hidden"):
        (tmp_path / name).touch()
    assert nothing_found(Inputs((tmp_path,), globs=("*.jpg", "x/*"))) == (
        f"no *.jpg or x/* in {tmp_path}, which holds 2 .tar and 2 .PNG and 1 without a suffix "
        "and 1 folder (--recursive enters)"
    )
    below = nothing_found(Inputs((tmp_path / "in",), recursive=True, globs=("*.PNG",)))
    assert below == f"no *.PNG in {tmp_path / 'in'} or below, which holds 1 .png"


def test_an_empty_folder_shard_and_list(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "s.tar", {"a.txt": b""})
    told = nothing_found(Inputs((tmp_path / "empty", tmp_path / "s.tar"), lists=(Path("names"),)))
    first, second, third = told.split("; ")
    assert first.startswith("no file with .jpg, ")
    assert first.endswith(f" in {tmp_path / 'empty'}, which holds nothing")
    assert (second, third) == (f"{tmp_path / 's.tar'} holds no picture", "names lists no path")


def test_many_inputs_are_one_line() -> None:
    paths = tuple(Path(f"{number}\n.tar") for number in range(9))
    told = nothing_found(Inputs(paths))
    assert "\n" not in told
    assert told.endswith("; 6 more inputs")

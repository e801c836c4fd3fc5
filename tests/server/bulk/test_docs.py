"""The examples of docs/datasets.md run as written, and it tells of every option."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow
import pyarrow.parquet
import pytest
import typer
from bulk_case import png, write_pictures, write_tar
from server_fakes import DEFAULT_CAPTION, FakeRunner
from server_wire import serving

from server import cli
from server.commands import caption
from server.commands.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.M | re.S)
EXAMPLES = [line for code in CODE for line in code.splitlines()]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(api_keys="example-key") as address:
        yield address


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str, line: str
) -> None:
    write_pictures(tmp_path / "pictures", ["a.png", "in/b.png"])
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "000000.tar", {"x.png": png(1)})
    (tmp_path / "list.txt").write_text("pictures/a.png\n")
    table = pyarrow.table({"image": [png(1)], "key": ["x"]})
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    words = shlex.split(line.replace("127.0.0.1:8000", server))
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    monkeypatch.setattr(caption, "load_runner", lambda settings: FakeRunner())
    monkeypatch.setattr(sys, "argv", [*words, "--workers", "1", "--strict"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert DEFAULT_CAPTION.encode() in b"".join(path.read_bytes() for path in written)


def test_every_option_is_told() -> None:
    command = typer.main.get_command(app)
    options = command.commands["caption"].params  # type: ignore[attr-defined]
    names = {option.opts[0] for option in options if option.opts[0].startswith("--")}
    assert len(names) > 40
    assert [name for name in names if not re.search(rf"{name}(?![\w-])", TEXT)] == []

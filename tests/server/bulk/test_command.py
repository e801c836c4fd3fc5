"""`rediff caption` on data sets: what is written where, what is told, and the exit status."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bulk_case import NOT_READ, write_pictures, write_tar
from server_fakes import DEFAULT_CAPTION, FakeRunner, png
from server_wire import serving

from rediff_model.chat_template import DEFAULT_QUESTION
from server import cli
from server.bulk.item import BulkError
from server.bulk.options import BulkOptions
from server.bulk.tables import journal_path
from server.commands import caption
from server.commands.options import CommandError
from server.engine.taught import REPLACED
from server.terminal import json_line

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = DEFAULT_CAPTION + "\n"


class Command:
    """The command line with a fake model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.runner = FakeRunner()
        self.loads = 0
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        monkeypatch.setattr(caption, "load_runner", lambda settings: self._load())
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def _load(self) -> FakeRunner:
        self.loads += 1
        return self.runner

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit status, stdout and stderr."""
        words = ["rediff", "caption", "--workers", "1", *map(str, arguments)]
        self._monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert isinstance(caught.value.code, int)
        out, err = self._capsys.readouterr()
        return caught.value.code, out, err


@contextmanager
def standard_output(path: Path) -> Iterator[None]:
    """Descriptor 1 writes to a file, as `> path` makes it."""
    saved = os.dup(1)
    try:
        with path.open("wb") as stream:
            os.dup2(stream.fileno(), 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "set", ["a.png", "in/b.png"])
    (tmp_path / "set" / "z.png").write_bytes(b"no picture")
    return tmp_path / "set"


def test_a_folder_is_written_beside_its_pictures(command: Command, folder: Path) -> None:
    status, out, err = command(folder, "--recursive", "--prompt", "a pear", "--trigger", "TOK")
    assert (status, out) == (0, "")
    first, last = err.splitlines()
    assert first == f"rediff: {folder / 'z.png'}: {NOT_READ}"
    assert last.startswith("rediff: 2 captions, 0 skipped, 1 failed; ")
    assert (folder / "a.txt").read_text() == "TOK, a pear\n"
    assert (folder / "in" / "b.txt").read_text() == "TOK, a pear\n"
    status, _, err = command(folder, "--recursive", "--strict")
    assert status == 1
    assert "0 captions, 2 skipped, 1 failed" in err


def test_negative_seeds_are_taken(command: Command, folder: Path) -> None:
    for seed, expected in (("-1", None), ("-2", -2)):
        assert command(folder / "a.png", "--seed", seed)[0] == 0
        assert command.runner.seeds[-1] == expected


def test_files_are_written_when_it_is_said_where(command: Command, folder: Path) -> None:
    status, out, _ = command(folder / "a.png", "--out", folder / "texts", "--append", ".")
    assert (status, out) == (0, "")
    assert (folder / "texts" / "a.txt").read_text() == DEFAULT_CAPTION + ".\n"


def test_a_list_and_a_shard_go_to_one_table(command: Command, folder: Path) -> None:
    shard, listing = folder / "s.tar", folder / "list"
    write_tar(shard, {"x.png": png(), "x.txt": b"old"})
    listing.write_text(f"{folder / 'a.png'}\n")
    out = folder / "out.jsonl"
    assert command(shard, "--list", listing, "--out", out, "--id", "stem")[0] == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["x", "a"]
    assert rows[0]["source"] == f"{shard}#x.png"
    assert {row["caption"] for row in rows} == {DEFAULT_CAPTION}


def test_failures_go_to_the_report(command: Command, folder: Path) -> None:
    report = folder / "deep" / "report.jsonl"
    status, _, err = command(folder, "--report", report)
    assert status == 0
    assert err.count("\n") == 1
    assert [json.loads(line) for line in report.read_text().splitlines()] == [
        {
            "id": "z.png",
            "source": str(folder / "z.png"),
            "reason": NOT_READ,
        }
    ]
    assert sorted(path.name for path in report.parent.iterdir()) == ["report.jsonl"]


def test_doubtful_captions_are_diverted(command: Command, folder: Path) -> None:
    out = folder / "out.csv"
    _, _, err = command(folder, "--out", out, "--min-confidence", "0.6")
    assert "1 captions, 1 of them doubtful" in err
    assert len(out.read_text().splitlines()) == 1
    assert DEFAULT_CAPTION in (folder / "out.doubtful.csv").read_text()


def test_what_is_complete_is_left_alone_unless_it_is_to_be_replaced(
    command: Command, folder: Path
) -> None:
    out = folder / "out.json"
    assert command(folder, "--out", out)[0] == 0
    assert json.loads(out.read_text()) == {"a.png": DEFAULT_CAPTION}
    for options in ([], ["--resume"]):
        status, _, err = command(folder, "--out", out, *options)
        assert (status, err) == (0, f"rediff: {out} is there already: --overwrite replaces it\n")
    assert command.loads == 1
    command(folder, "--out", out, "--overwrite", "--prompt", "pear")
    assert json.loads(out.read_text()) == {"a.png": "pear"}


def test_a_stopped_run_goes_on_only_when_asked_and_with_the_same_order(
    command: Command, folder: Path
) -> None:
    out = folder / "out.jsonl"

    def interrupted(ids: tuple[int, ...]) -> str:
        raise KeyboardInterrupt

    command.runner.decode = interrupted  # type: ignore[method-assign]
    status, _, err = command(folder, "--out", out)
    assert (status, err) == (130, "rediff: stopped; what is done is kept\n")
    assert not out.exists()
    command.runner = FakeRunner()
    status, _, err = command(folder, "--out", out)
    assert status == 1
    assert err == (
        f"rediff: {journal_path(out)} is of a run that was stopped: --resume goes on, "
        "--overwrite starts over\n"
    )
    status, _, err = command(folder, "--out", out, "--resume", "--prompt", "pear")
    assert "was begun with prompt None, now it is 'pear'" in err
    assert command(folder, "--out", out, "--resume")[0] == 0
    assert DEFAULT_CAPTION in out.read_text()


def test_shards_are_not_mixed_by_accident(command: Command, folder: Path) -> None:
    out = ("--out", folder / "out", "--format", "webdataset")
    assert command(folder, *out)[0] == 0
    status, _, err = command(folder, *out)
    assert status == 1
    assert "holds shards: --resume goes on, --overwrite replaces them" in err
    assert "1 skipped" in command(folder, *out, "--resume")[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "best"], "--format: "),
        (["--format", "jsonl"], "--format jsonl needs --out"),
        (["--out", "{set}", "--format", "csv"], "is a folder, and --format csv needs a file"),
        (["--out", "{set}/a.png"], "is a file, and --format txt needs a folder"),
        (["--min-confidence", "2"], "--min-confidence: "),
        (["--doubtful", "x"], "--doubtful needs --min-confidence"),
        (["--out", "x.csv", "--report", "./x.csv"], "x.csv cannot take two outputs"),
        (["--out", "x.csv", "--report", "{set}"], "is a folder, and --report needs a file"),
        (["--list", "x" * 300], "File name too long"),
        (["x" * 300 + ".png"], "File name too long"),
        (["{set}/../picturs"], "picturs: No such file or directory"),
        (["--overwrite", "--resume"], "give one"),
        (["--prompt", "a", "--prompt-file", "b"], "give one"),
        (["--prompt-file", "{set}"], "Is a directory"),
        (["--list", "{set}/gone"], "gone: No such file"),
        (["--workers", "0"], "--workers: "),
        (["--base-url", "nowhere"], "--base-url: the scheme is missing"),
        (["--edit-threshold", "3"], "--edit-threshold: "),
    ],
)
def test_wrong_use_is_one_line_and_loads_no_model(
    command: Command, folder: Path, options: list[str], message: str
) -> None:
    status, out, err = command(folder, *(word.format(set=folder) for word in options))
    # What cannot be read is no wrong use.
    unreadable = ("Is a directory", "No such file")
    expected = 1 if any(reason in message for reason in unreadable) else 2
    assert (status, out, command.loads) == (expected, "", 0)
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", ["--out {s}", "--out o.csv --report {s}"])
def test_what_is_read_is_not_written(command: Command, folder: Path, words: str) -> None:
    shard = folder / "s.tar"
    write_tar(shard, {"x.png": png()})
    before = shard.read_bytes()
    options = words.format(s=shard).split()
    status, _, err = command(shard, *options, "--format", "csv", "--overwrite")
    assert (status, err) == (2, f"rediff: {shard} is read by this run and cannot be written to\n")
    status, _, err = command(shard, "--out", folder, "--format", "webdataset", "--overwrite")
    assert status == 2
    assert "lies where shards are to be written" in err
    assert shard.read_bytes() == before


def test_names_do_not_reach_a_terminal_as_they_are(command: Command, folder: Path) -> None:
    odd = folder / "a\n\x1b[31m\udcff.png"
    odd.write_bytes(b"no picture")
    line = f"a\\n\\x1b[31m\\udcff.png: {NOT_READ}"
    assert line in command(folder)[2].splitlines()[0]
    assert line in command(folder / "a.png", odd)[2]
    odd.write_bytes(png())
    _, out, _ = command(folder / "a.png", odd)
    assert out.splitlines()[1].startswith(f"{folder}/a\\n\\x1b[31m\\udcff.png: ")
    _, out, _ = command(folder / "a.png", odd, "--json")
    assert json.loads(out.splitlines()[1])["file"] == f"{folder}/a\n\x1b[31m\\udcff.png"


def test_an_output_that_cannot_be_written_is_named(command: Command, folder: Path) -> None:
    (folder / "file").touch()
    out = folder / "file" / "out.csv"
    status, _, err = command(folder, "--out", out)
    assert (status, err) == (1, f"rediff: {out.parent}: File exists\n")


@pytest.mark.parametrize("link", [False, True])
def test_reports_and_tables_go_to_standard_output(
    command: Command, folder: Path, link: bool
) -> None:
    out, log = Path("/dev/stdout"), folder.parent / "log"
    if link:
        out = folder.parent / "out"
        out.symlink_to("/dev/stdout")
    with standard_output(log):
        status, _, err = command(folder, "--out", folder.parent / "o.jsonl", "--report", out)
        assert (status, "z.png" in err) == (0, False)
        for _ in range(2):
            status, _, _ = command(folder, "--out", out, "--format", "jsonl", "--resume")
            assert status == 0
    ids = [json.loads(line)["id"] for line in log.read_text().splitlines()]
    assert ids == ["z.png", "a.png", "a.png"]
    assert not Path("/dev/stdout.journal").exists()
    assert not link or out.is_symlink()


def test_outputs_that_are_neither_file_nor_folder_are_refused_where_they_cannot_be(
    command: Command, folder: Path
) -> None:
    for words, reason in {
        "--format txt": "/dev/null is a file, and --format txt needs a folder",
        "--format webdataset": "/dev/null is a file, and --format webdataset needs a folder",
        "--format jsonl --ray": "--ray needs a file or folder with --out, /dev/null is neither",
    }.items():
        status, _, err = command(folder, "--out", "/dev/null", *words.split())
        assert status
        assert reason in err
    assert command.loads == 0


def test_options_of_files_to_write_are_refused_when_captions_are_printed(
    command: Command, folder: Path
) -> None:
    status, _, err = command(folder / "a.png", "--report", "x")
    assert status == 2
    assert err.startswith("rediff: --report is for captions that are written")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_the_prompt_may_come_from_a_file(command: Command, folder: Path, encoding: str) -> None:
    (folder / "prompt").write_text("a green pear\n", encoding)
    assert command(folder / "a.png", "--prompt-file", folder / "prompt", "--prepend", "> ") == (
        0,
        "> a green pear\n",
        "",
    )


def test_a_server_does_the_same_work(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(api_keys="secret") as address:
        server = ["--base-url", f"http://{address}"]
        status, _, err = command(folder, *server)
        assert status == 1
        assert "status 401" in err
        monkeypatch.setenv("REDIFF_API_KEY", "secret")
        assert command(folder, *server)[0] == 0
        assert command(folder / "a.png", *server) == (0, TEXT, "")
    assert command.loads == 0
    assert (folder / "a.txt").read_text() == TEXT


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BulkError, match=r"captions\.xlsx: a file ends in .*\.csv"):
        BulkOptions.read({"files": [tmp_path], "out": tmp_path / "captions.xlsx"})


@pytest.mark.parametrize(
    ("given", "key"), [("sk-1\n", "sk-1"), ("\ufeffsk-1\r\n", "sk-1"), (" \t", None), ("", None)]
)
def test_white_space_around_a_key_is_dropped(
    monkeypatch: pytest.MonkeyPatch, given: str, key: str | None
) -> None:
    monkeypatch.setenv("REDIFF_API_KEY", given)
    assert caption._key() == key


@pytest.mark.parametrize("given", ["\u201csk-1\u201d", "sk\n1", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_one_line_without_it(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("REDIFF_API_KEY", given)
    with pytest.raises(CommandError, match=r"^REDIFF_API_KEY: character \d .* U\+") as error:
        caption._key()
    assert given not in str(error.value)


@pytest.mark.parametrize("where", ["here", "server"])
def test_a_prompt_that_the_model_was_not_taught_is_told_once_and_in_every_row(
    command: Command, folder: Path, where: str
) -> None:
    command.runner.info = replace(command.runner.info, taught_prompts=(DEFAULT_QUESTION,))
    out = folder.parent / "out.jsonl"
    words: list[str | Path] = [folder, "--recursive", "--out", out, "--prompt", "caption this"]
    if where == "here":
        status, _, err = command(*words)
    else:
        with serving(lambda: command.runner) as address:
            status, _, err = command(*words, "--base-url", f"http://{address}")
    assert status == 0
    assert err.count(REPLACED) == 1
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(row["caption"], row["warning"]) for row in rows] == [(DEFAULT_CAPTION, REPLACED)] * 2


def test_a_prompt_that_the_model_was_taught_is_asked_without_a_word(
    command: Command, folder: Path
) -> None:
    command.runner.info = replace(command.runner.info, taught_prompts=("a pear",))
    out = folder.parent / "out.csv"
    status, _, err = command(folder / "a.png", "--out", out, "--prompt", " a pear ")
    assert (status, "not taught" in err) == (0, False)
    header, row = out.read_text(encoding="utf-8").splitlines()
    assert header.endswith(",warning")
    assert row.split(",")[2:] == ["a pear", "0.5", "1", "2", "stop", ""]


LONG = "One pear lies. Two red apples lie on the grass"
"""More words than a canvas has."""


@pytest.mark.parametrize("where", ["here", "server"])
def test_captions_that_were_cut_off_are_counted_and_may_end_at_a_sentence(
    command: Command, folder: Path, where: str
) -> None:
    out = folder.parent / "out.jsonl"
    words: list[str | Path] = [folder, "--recursive", "--out", out, "--prompt", LONG]
    drop: list[str | Path] = ["--drop-incomplete-sentence", "--overwrite"]
    cut = "One pear lies. Two red apples lie on"
    with serving(lambda: command.runner) as address:
        if where == "server":
            words += ["--base-url", f"http://{address}"]
        for options, expected in (([], cut), (drop, "One pear lies.")):
            status, _, err = command(*words, *options)
            assert status == 0
            assert "rediff: 2 captions, 2 cut off, 0 skipped, 1 failed; " in err
            rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
            assert [(row["caption"], row["finish_reason"]) for row in rows] == [
                (expected, "length")
            ] * 2
        assert command(folder / "a.png", *words[4:], *drop[:1])[1] == "One pear lies.\n"


def test_nothing_to_caption_is_told_and_a_failure_with_strict(
    command: Command, tmp_path: Path
) -> None:
    listing = tmp_path / "list"
    listing.write_text("\n")
    cases: list[list[str | Path]] = [[tmp_path, "--glob", "*.PNG"], ["--list", listing]]
    for arguments in cases:
        for strict in (0, 1):
            status, _, err = command(*arguments, *(["--strict"] * strict))
            assert status == strict
            first, last = err.splitlines()
            assert first.startswith("rediff: 0 captions, 0 skipped, 0 failed; ")
            assert last.startswith("rediff: nothing to caption: ")


def test_a_resumed_run_keeps_to_full_sentences(command: Command, folder: Path) -> None:
    out = folder.parent / "out.jsonl"

    def interrupted(ids: tuple[int, ...]) -> str:
        raise KeyboardInterrupt

    command.runner.decode = interrupted  # type: ignore[method-assign]
    assert command(folder, "--out", out)[0] == 130
    status, _, err = command(folder, "--out", out, "--resume", "--drop-incomplete-sentence")
    assert status == 1
    assert "was begun with wording" in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"])
def test_json_stays_json_whatever_the_terminal_holds(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    row = {"caption": "é 鳥 \N{BIRD}"}
    stream.write(json_line(row))
    stream.flush()
    assert json.loads(buffer.getvalue().decode(encoding)) == row

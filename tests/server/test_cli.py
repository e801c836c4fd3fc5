"""The command line: captions of files, scenes, and errors in one line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from server_fakes import DEFAULT_CAPTION, FakeRunner, png
from server_wire import serving

from rediff_model.chat_template import DEFAULT_QUESTION
from server import __version__, cli
from server.commands import caption
from server.engine.taught import REPLACED

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> FakeRunner:
    fake = FakeRunner()
    monkeypatch.setattr(caption, "load_runner", lambda settings: fake)
    return fake


def rediff(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run the command and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["rediff", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        path.write_bytes(png())
    return paths


@pytest.fixture(autouse=True)
def _waiting_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    # `main` sets it for the process, which here is that of all tests.
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


def test_one_file_prints_its_caption(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runner: FakeRunner,
    pictures: list[Path],
) -> None:
    assert rediff(monkeypatch, "caption", pictures[0]) == 0
    assert capsys.readouterr().out == f"{DEFAULT_CAPTION}\n"


def test_several_files_are_named_batched_and_a_bad_one_does_not_stop_them(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runner: FakeRunner,
    pictures: list[Path],
) -> None:
    pictures[1].write_bytes(b"text")
    missing = pictures[0].with_name("missing.png")
    files = [*pictures, missing]
    assert rediff(monkeypatch, "caption", *files, "--prompt", "a pear", "--max-batch", "2") == 1
    out, err = capsys.readouterr()
    assert out == f"{pictures[0]}: a pear\n{pictures[2]}: a pear\n"
    assert err.splitlines() == [
        f"rediff: {pictures[1]}: the image must be one of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF",
        f"rediff: {missing}: No such file or directory",
    ]
    assert [prompt for batch in runner.starts for prompt in batch] == ["a pear"] * 2


def test_numbers_that_are_not_finite_are_told_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    pictures: list[Path],
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.input_layernorm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors")
    assert rediff(monkeypatch, "caption", pictures[0], "--model", broken) == 1
    error = capsys.readouterr().err
    assert error == f"rediff: {pictures[0]}: the model gave numbers that are not finite\n"


def test_the_same_file_twice_is_captioned_twice(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runner: FakeRunner,
    pictures: list[Path],
) -> None:
    assert rediff(monkeypatch, "caption", pictures[0], pictures[0]) == 0
    assert capsys.readouterr().out.count(DEFAULT_CAPTION) == 2


def test_of_an_endless_file_no_more_is_read_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runner: FakeRunner,
    tmp_path: Path,
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with suppress(BrokenPipeError), pipe.open("wb", buffering=0) as stream:
            stream.write(png() + b"\0" * 5000)

    writer = threading.Thread(target=write)
    writer.start()
    assert rediff(monkeypatch, "caption", pipe, "--max-image-bytes", "1024") == 1
    writer.join()
    assert capsys.readouterr().err == (
        f"rediff: {pipe}: the file is above the limit of 1024 bytes\n"
    )


@pytest.mark.parametrize("where", ["printed", "written"])
def test_a_picture_comes_from_a_pipe(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runner: FakeRunner,
    tmp_path: Path,
    where: str,
) -> None:
    """As `rediff caption <(command)`: no process of ours but this one can open it."""
    pipe, out = tmp_path / "pipe", tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(png()))
    writer.start()
    words: list[str | Path] = ["--out", out, "--progress"] if where == "written" else []
    assert rediff(monkeypatch, "caption", pipe, *words) == 0
    writer.join()
    printed = capsys.readouterr().out
    written = json.loads(out.read_text())["caption"] + "\n" if where == "written" else printed
    assert written == f"{DEFAULT_CAPTION}\n"


def test_a_blank_prompt_is_the_default_one(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runner: FakeRunner,
    pictures: list[Path],
) -> None:
    assert rediff(monkeypatch, "caption", pictures[0], "--prompt", "  ") == 0
    assert capsys.readouterr().out == f"{DEFAULT_CAPTION}\n"


def test_a_prompt_of_too_many_tokens_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runner: FakeRunner,
    pictures: list[Path],
) -> None:
    monkeypatch.setenv("REDIFF_MAX_PROMPT_TOKENS", "3")
    assert rediff(monkeypatch, "caption", pictures[0], "--prompt", "a b c d") == 1
    assert capsys.readouterr().err == "rediff: prompt has 4 tokens, the limit is 3\n"


@pytest.mark.parametrize(
    ("option", "value"), [("--preset", "carefull"), ("--tokens-per-step", "0")]
)
def test_a_setting_that_cannot_be_used_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runner: FakeRunner,
    pictures: list[Path],
    option: str,
    value: str,
) -> None:
    assert rediff(monkeypatch, "caption", pictures[0], option, value) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"rediff: {option}: ")
    assert value in said.split("got ")[1]


def test_json_is_an_object_a_file(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runner: FakeRunner,
    pictures: list[Path],
) -> None:
    pictures[1].write_bytes(b"")
    options = ("--json", "--tokens-per-step", "2")
    assert rediff(monkeypatch, "caption", *pictures[:2], *options) == 1
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {
            "file": str(pictures[0]),
            "caption": DEFAULT_CAPTION,
            "finish_reason": "stop",
            "steps": 4,
            "revisions": 1,
        },
        {"file": str(pictures[1]), "error": "the image is empty"},
    ]


def test_a_prompt_that_the_model_was_not_taught_is_told_on_stderr(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runner: FakeRunner,
    pictures: list[Path],
) -> None:
    runner.info = replace(runner.info, taught_prompts=(DEFAULT_QUESTION,))
    words: tuple[str | Path, ...] = ("caption", *pictures, "--prompt", "caption this")
    assert rediff(monkeypatch, *words) == 0
    out, err = capsys.readouterr()
    assert out.count(DEFAULT_CAPTION) == 3
    assert err == f"rediff: {REPLACED}\n"
    assert rediff(monkeypatch, *words, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["warnings"] for row in rows] == [[REPLACED]] * 3


def test_options_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runner: FakeRunner,
    pictures: list[Path],
) -> None:
    monkeypatch.setenv("REDIFF_STEPS", "1")
    monkeypatch.setenv("REDIFF_JSON", "1")
    monkeypatch.setenv("REDIFF_MAX_IMAGE_PIXELS", "10")
    assert rediff(monkeypatch, "caption", pictures[0]) == 1
    assert "above the limit of 10" in json.loads(capsys.readouterr().out)["error"]


def test_a_mistyped_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("REDIFF_MAX_BTCH", "REDIFF_XQ", "REDIFF_SERVICE_HOST", "REDIFF_PORT_80_TCP"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("REDIFF_API_KEY", "secret")
    assert rediff(monkeypatch, "caption") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "rediff: REDIFF_MAX_BTCH is no setting: did you mean REDIFF_MAX_BATCH?",
        "rediff: REDIFF_XQ is no setting",
    ]
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Missing command"),
        (["wash"], 2, "No such command"),
        (["caption"], 2, "name pictures, folders or shards"),
        (["caption", "x.png", "--steps", "many"], 2, "'--steps'"),
        (["caption", "x.png", "--steps", "0"], 2, "steps: "),
        (["caption", "x.png", "--preset", "best"], 2, "preset: "),
        (["caption", "x.png", "--steps", "4", "--tokens-per-step", "4"], 2, "exclude each other"),
        (["caption", "x.png", "--device", "gpu"], 2, "device: "),
        (["caption", "x.png", "--prompt", "a" * 4001], 2, "prompt has 4001 characters"),
        (["serve", "--port", "x"], 2, "port: "),
        (["serve", "--port", "70000"], 2, "port: "),
        (["serve", "--colour", "x"], 2, "No such option"),
        (["data", "scenes"], 2, "Missing option"),
        (["data", "scenes", "--n", "0", "--out", "x"], 2, "'--n'"),
        (["data", "scenes", "--n", "1", "--seed", "-1", "--out", "x"], 2, "'--seed'"),
        (["evaluate", "--seed", "-1"], 2, "'--seed'"),
        (["caption", "x.png", "--max-batch", "0"], 2, "--max-batch: "),
        (["caption", "x.png", "--base-url", "nowhere:1"], 2, "--base-url: "),
        (["caption", "https://a.org/x.png"], 2, "FILE https://a.org/x.png is a URL: a file is"),
        (
            ["caption", "x.png", "--model", "https://hub.org/a/b"],
            2,
            "--model https://hub.org/a/b is",
        ),
        (
            ["caption", "x.png", "--out", "s3://bucket/out"],
            2,
            "--out s3://bucket/out is a URL",
        ),
        (["caption", "--list", "ftp://me:pw@a/b"], 2, "--list ftp://***@a/b is a URL: a file is"),
        (
            ["serve", "--max-image-bytes", "99999999"],
            2,
            "--max-image-bytes 99999999 is above --max",
        ),
        (["serve", "--host", "127.0.0..1"], 2, "--host: it is no host name, got '127.0.0..1'"),
        (["serve", "--host", "a" * 70], 2, "--host: it is no host name, got 'aaa"),
        (["serve", "--host", "http://127.0.0.1"], 2, "--host: a host has no scheme"),
        (["serve", "--host", "127.0.0.1:80"], 2, "--host: the port belongs to --port, got"),
        (["serve", "--host", "192.0.2.1"], 2, "--host: Cannot assign requested address, got"),
        (["serve", "--host", "a.invalid", "--port", "0"], 2, "--host: "),
        (
            ["train", "stage1", "--config", "http://a/b.yaml", "--out", "x"],
            2,
            "--config http://a/b",
        ),
        (["evaluate", "--prompts", "gone.txt"], 1, "--prompts gone.txt cannot be read: "),
        (["evaluate", "--preset", "best"], 2, "--preset must be one of rediff, "),
        (["data", "scenes", "--n", "1", "--split", "best", "--out", "x"], 2, "'--split'"),
    ],
)
def test_wrong_use_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    def load(settings: object) -> FakeRunner:
        raise AssertionError("the model must not be loaded for a wrong option")

    monkeypatch.setattr(caption, "load_runner", load)
    assert rediff(monkeypatch, *arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rediff: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_value_of_a_variable_is_named_by_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIFF_MAX_BATCH", "0")
    assert rediff(monkeypatch, "caption", "x.png") == 2
    assert capsys.readouterr().err.startswith("rediff: REDIFF_MAX_BATCH: Input should be greater")
    monkeypatch.setenv("REDIFF_MAX_BATCH", "2")
    monkeypatch.setenv("REDIFF_API_KEYS", "schl\xfcssel")
    assert rediff(monkeypatch, "serve") == 2
    told = capsys.readouterr().err
    assert told.startswith("rediff: REDIFF_API_KEYS: key 1: character 5 of the key is U+00FC")
    assert "schl" not in told


def test_a_model_that_cannot_be_loaded_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert rediff(monkeypatch, "caption", "x.png", "--model", tmp_path / "none") == 1
    told = capsys.readouterr().err
    assert told.startswith(f"rediff: no checkpoint folder at {tmp_path / 'none'}, and the package")
    assert told.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runner: FakeRunner
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert rediff(monkeypatch, "serve", "--port", str(port)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"rediff: cannot listen on 127.0.0.1 port {port}: Address")
    assert err.count("\n") == 1


def test_scenes_are_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ("data", "scenes", "--n", "2", "--split", "test", "--seed", "5")
    assert rediff(monkeypatch, *arguments, "--out", tmp_path / "a") == 0
    assert rediff(monkeypatch, *arguments, "--out", tmp_path / "b") == 0
    rows = (tmp_path / "a" / "annotations.jsonl").read_text()
    assert rows == (tmp_path / "b" / "annotations.jsonl").read_text()
    for row in map(json.loads, rows.splitlines()):
        assert (tmp_path / "a" / row["file"]).read_bytes().startswith(b"\x89PNG")
        assert row["caption"]
        assert set(row["objects"][0]) == {"name", "colour", "shape", "size", "box"}
    assert rediff(monkeypatch, *arguments, "--out", tmp_path / "a") == 1
    err = capsys.readouterr().err
    assert err == f"rediff: {tmp_path / 'a'} is not empty; --overwrite replaces it\n"
    assert rediff(monkeypatch, *arguments, "--out", tmp_path / "a", "--overwrite") == 0


def test_overwriting_scenes_removes_nothing_but_scenes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    arguments = ("data", "scenes", "--n", "1", "--out", tmp_path, "--overwrite")
    assert rediff(monkeypatch, *arguments) == 1
    assert thesis.read_text() == "years of work"
    assert capsys.readouterr().err == (
        f"rediff: {tmp_path} holds thesis.txt, which is no part of a set of scenes\n"
    )


def test_help_and_version_import_nothing_heavy() -> None:
    for arguments, expected in ((["--help"], "serve"), (["--version"], __version__)):
        code = (
            f"import sys; sys.argv = ['rediff', *{arguments!r}]\n"
            "from server import cli\n"
            "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
            "heavy = {'torch', 'numpy', 'pydantic', 'fastapi', 'uvicorn', 'PIL', 'training'}\n"
            "print(heavy & set(sys.modules))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert expected in done.stdout
        assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize("module", ["typer", "server.settings"])
def test_ctrl_c_among_the_imports_ends_quietly(module: str) -> None:
    code = (
        "import signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.argv = ['rediff', 'serve']\n"
        "from server.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")


def test_the_version_is_that_of_the_distribution() -> None:
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_files_for_figures_are_looked_at_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("server.engine.model_runner.load_captioner", fail)
    here, gone = tmp_path / "here.json", tmp_path / "gone" / "out.json"
    for arguments, status, said in [
        (("--json", tmp_path), 1, f"{tmp_path} cannot be written: Is a directory"),
        (("--captions", tmp_path), 1, f"{tmp_path} cannot be written: Is a directory"),
        (("--json", gone), 1, f"{gone} cannot be written: there is no folder {gone.parent}"),
        (("--json", here, "--captions", here), 2, f"{here} is named for two things"),
    ]:
        assert rediff(monkeypatch, "evaluate", *arguments) == status
        assert said in capsys.readouterr().err
    assert not here.exists()


def piped(
    command: str, encoding: str = "utf-8", **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command in a shell, with `rediff` for the command line of this tree."""
    rediff = f"{sys.executable} {ROOT / 'tests' / 'fake_rediff.py'}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command.replace("rediff", rediff)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        encoding=encoding,
        check=False,
    )


@pytest.mark.parametrize("where", ["here", "server"])
@pytest.mark.parametrize("options", ["", "--json"])
def test_output_into_head_ends_quietly(tmp_path: Path, where: str, options: str) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(png())
    with serving() as address:
        remote = f"--base-url http://{address} --concurrency 2" if where == "server" else ""
        done = piped(f"rediff caption {tmp_path}/*.png {remote} {options} | head -n 1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert DEFAULT_CAPTION in done.stdout


def test_errors_into_head_end_quietly(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(b"no picture")
    done = piped(f"rediff caption {tmp_path}/*.png 2>&1 | head -n 1")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16"])
@pytest.mark.parametrize("options", ["", "--json"])
def test_no_terminal_breaks_the_output(tmp_path: Path, encoding: str, options: str) -> None:
    names = ["\u732b \U0001f426.png", "\xfc.png", "bad \u9ce5.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"" if "bad" in name else png())
    command = f"rediff caption {tmp_path}/*.png --prompt 'h\xf6 \u9ce5' {options} 2>&1"
    done = piped(command, PYTHONIOENCODING=encoding, PYTHONUTF8="1", encoding=encoding)
    assert "Traceback" not in done.stdout
    assert "the image is empty" in done.stdout
    assert done.returncode == 1
    assert r"bad \u9ce5.png" in done.stdout or "bad \u9ce5.png" in done.stdout
    if options:
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert [row.get("caption") for row in rows].count("h\xf6 \u9ce5") == 2

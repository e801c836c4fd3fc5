"""Captions on a real Ray cluster of two engines: the local ones, also after kills."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bulk_case import NOT_READ, captions_one_by_one, write_tar
from PIL import Image

from server.bulk.item import BulkError
from server.bulk.options import BulkOptions
from server.bulk.order import Order
from server.bulk.ray import RayCaptioner, read_row
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
COUNT = 30
NO_PICTURE = 7
GROUP = 3
CANVAS = 128
"""With a token a step, enough steps for a kill to find work under way."""
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: rediff-serve[ray]"
)


def write_noise(folder: Path) -> None:
    """Pictures that no two captioners would mistake for each other; one is none."""
    folder.mkdir()
    for number in range(COUNT):
        noise = Image.effect_noise((64, 48), 20 + 3 * number).convert("RGB")
        noise.save(folder / f"{number:02d}.png")
    (folder / f"{NO_PICTURE:02d}.png").write_bytes(b"no picture")


def local(folder: Path, checkpoint: Path) -> list[tuple[str, str]]:
    """Name and caption of every picture, from an engine in this process."""
    settings = Settings.read({"model": str(checkpoint), "max_batch": 4})
    order = Order.read(settings, {"tokens_per_step": 1, "canvas_length": CANVAS}, None)
    found = captions_one_by_one(settings, order, sorted(folder.iterdir()))
    return [(path.name, text) for path, text in found.items()]


@contextmanager
def run(folder: Path, checkpoint: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`rediff caption set --ray` on a cluster of its own, from the folder."""
    command = [
        sys.executable,
        str(ROOT / "tests" / "ray_program.py"),
        "caption",
        str(folder / "set"),
    ]
    command += ["--ray", "--ray-engines", "2", "--ray-group", str(GROUP), "--workers", "1"]
    command += ["--model", str(checkpoint), "--device", "cpu", "--tokens-per-step", "1"]
    command += ["--canvas-length", str(CANVAS)]
    variables = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        "RAY_USAGE_STATS_ENABLED": "0",
        # By default workers wait for whatever else the machine does.
        "RAY_worker_niceness": "0",
    }
    with subprocess.Popen(
        [*command, *words], cwd=folder, env=os.environ | variables, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def whole(folder: Path, checkpoint: Path, *words: str) -> str:
    """A run to its end; what it tells."""
    with run(folder, checkpoint, *words) as process:
        return ended(process)


def ended(process: subprocess.Popen[bytes]) -> str:
    told = process.communicate(timeout=600)[1].decode()
    assert process.returncode == 0, told
    return told


def rows(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(row["id"], row["caption"]) for row in map(json.loads, lines)]


def kept(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a journal."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines[1:] if line.endswith("\n")]


def wait_for_rows(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until so many lines are in a file."""
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.02)


def engines(process: subprocess.Popen[bytes]) -> list[int]:
    """The actors of a cluster that a process has started: children of its children."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            title = (folder / "cmdline").read_bytes()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            grandparent = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if title.startswith(b"ray::MapWorker") and int(grandparent) == process.pid:
            found.append(int(folder.name))
    return found


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_captions_are_those_of_one_engine(tmp_path: Path, checkpoint: Path) -> None:
    write_noise(tmp_path / "set")
    files = sorted((tmp_path / "set").iterdir())
    write_tar(tmp_path / "set" / "x.tar", {path.name: path.read_bytes() for path in files})
    expected = local(tmp_path / "set", checkpoint)
    told = whole(tmp_path, checkpoint, "set/x.tar", "--out", "out.jsonl", "--report", "report")
    names = [(name.removesuffix(".png"), text) for name, text in expected]
    assert rows(tmp_path / "out.jsonl") == expected + names
    assert f"{2 * COUNT - 2} captions, 0 skipped, 2 failed" in told
    lines = (tmp_path / "report").read_text(encoding="utf-8").splitlines()
    reasons = [json.loads(line)["reason"] for line in lines]
    assert reasons == [NOT_READ] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "report", "set"]


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_engine_that_is_killed_costs_no_picture(tmp_path: Path, checkpoint: Path) -> None:
    write_noise(tmp_path / "set")
    with run(tmp_path, checkpoint, "--out", "out.jsonl") as process:
        wait_for_rows(tmp_path / "out.jsonl.journal", 1 + GROUP, process)
        victim, *_ = engines(process)
        os.kill(victim, signal.SIGKILL)
        assert len(kept(tmp_path / "out.jsonl.journal")) < COUNT - 1
        ended(process)
    assert rows(tmp_path / "out.jsonl") == local(tmp_path / "set", checkpoint)


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_run_goes_on_with_what_is_left(tmp_path: Path, checkpoint: Path) -> None:
    write_noise(tmp_path / "set")
    expected = local(tmp_path / "set", checkpoint)
    journal, ahead = tmp_path / "out.jsonl.journal", tmp_path / "out.jsonl.ray"
    with run(tmp_path, checkpoint, "--out", "out.jsonl", "--resume") as process:
        wait_for_rows(journal, 1 + 2 * GROUP, process)
        process.kill()
        process.wait()
    done = [*kept(journal), *kept(ahead)]
    assert 2 * GROUP <= len(done) < COUNT - 1
    # Whoever is done again has no caption any more.
    for row in done:
        Path(row["source"]).write_bytes(b"gone")
    told = whole(tmp_path, checkpoint, "--out", "out.jsonl", "--resume")
    assert " 1 failed" in told
    assert rows(tmp_path / "out.jsonl") == expected
    assert not ahead.exists()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"out": None}, "--ray needs --out"),
        ({"base_url": "http://127.0.0.1:1"}, "--base-url is for a server"),
        ({"retries": 3}, "--retries is for --base-url"),
        ({"concurrency": 3}, "--concurrency is for --base-url"),
        ({"files": ["a.parquet"]}, "not a.parquet"),
        ({"ray": False, "ray_group": 3}, "--ray-group is for --ray"),
        ({"ray": False, "ray_engines": 3}, "--ray-engines is for --ray"),
        ({"ray_engines": 0}, "--ray-engines: "),
    ],
)
def test_what_a_cluster_does_not_do_is_refused_by_name(given: dict[str, Any], reason: str) -> None:
    whole = {"files": ["a.png"], "out": "out.jsonl", "ray": True} | given
    with pytest.raises(BulkError, match=reason):
        BulkOptions.read(whole)


def test_the_gpu_of_one_machine_is_refused(tmp_path: Path) -> None:
    options = BulkOptions.read({"files": ["a.png"], "out": tmp_path / "out.jsonl", "ray": True})
    settings = Settings.read({"model": "fake", "device": "cuda:1"})
    with pytest.raises(BulkError, match="--device cuda:1"):
        RayCaptioner.open(options, settings, Order.read(settings, {}, None), {})


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    options = BulkOptions.read({"files": ["a.png"], "out": tmp_path / "out.jsonl", "ray": True})
    settings = Settings.read({"model": "fake"})
    with pytest.raises(BulkError, match=r"rediff-serve\[ray\]"):
        RayCaptioner.open(options, settings, Order.read(settings, {}, None), {})


def test_a_worker_reads_a_part_of_a_shard_or_says_why_not(tmp_path: Path) -> None:
    shard = tmp_path / "x.tar"
    shard.write_bytes(b"0123456789")
    row = {"key": 5, "source": os.fsencode(shard), "offset": 2, "size": 3}
    read = read_row(row, most_bytes=4, prompt="What?", settings="{}")
    assert read == {"key": 5, "image": b"234", "prompt": "What?", "settings": "{}", "error": ""}
    assert (
        read_row(row | {"size": -1}, 4, "", "")["error"] == "the file is above the limit of 4 bytes"
    )
    assert read_row(row | {"source": b"no/such"}, 4, "", "")["error"] == "No such file or directory"

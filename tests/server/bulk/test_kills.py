"""Runs that are killed at any point and started again end with what an unbroken one writes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bulk_case import captions_one_by_one, write_pictures
from PIL import Image

from server.bulk.order import Order
from server.settings import Settings

ROOT = Path(__file__).parents[3]
COUNT = 24
CANVAS = 16
OUTPUTS = {
    "txt": ["--out", "out"],
    "jsonl": ["--out", "out.jsonl", "--resume"],
    "json": ["--out", "out.json", "--resume"],
    "csv": ["--out", "out.csv", "--resume"],
    "parquet": ["--out", "out.parquet", "--resume"],
    "webdataset": ["--out", "out", "--format", "webdataset", "--shard-size", "10", "--resume"],
}


class Runs:
    """Runs over one set of pictures, each in a folder of its own."""

    def __init__(self, pictures: Path, kind: str, *, fake: bool) -> None:
        self._command = [sys.executable, str(ROOT / "tests" / "killed.py")]
        self._command += ["fake"] if fake else []
        self._command += ["caption", str(pictures), "--workers", "1", "--report", "report.jsonl"]
        self._command += OUTPUTS[kind]
        self._command += [] if fake else ["--canvas-length", str(CANVAS), "--max-batch", "4"]

    def whole(self, folder: Path) -> str:
        """Run to the end; what is told on stderr."""
        with self._start(folder) as process:
            told = process.communicate(timeout=240)[1].decode()
        assert process.returncode == 0, told
        return told

    def interrupted(self, folder: Path) -> tuple[int, str]:
        """Interrupt a run, as from a terminal, that has written; its status and stderr."""
        interrupted = folder / "interrupted"
        with self._start(folder, HOLD_LAST_UNTIL=str(interrupted)) as process:
            journal = folder / "out.csv.journal"
            while not (journal.exists() and b"shade" in journal.read_bytes()):
                assert process.poll() is None
                time.sleep(0.002)
            os.killpg(process.pid, signal.SIGINT)
            interrupted.touch()
            told = process.communicate(timeout=60)[1].decode()
        return process.returncode, told

    def killed(self, folder: Path, changes: int, seconds: float) -> bool:
        """Kill a run after changes of its files and some more time; whether it still ran."""
        with self._start(folder) as process:
            before = last = traces(folder)
            while changes > 0 and process.poll() is None:
                time.sleep(0.002)
                if (now := traces(folder)) != last:
                    changes, last = changes - 1, now
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            # Also the end of the workers, which hold it too.
            process.communicate(timeout=60)
        return process.returncode == -signal.SIGKILL and traces(folder) != before

    def _start(self, folder: Path, **variables: str) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        return subprocess.Popen(
            self._command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # A shell's background jobs ignore interrupts, and what they start inherits it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def traces(folder: Path) -> dict[str, int]:
    """Files with their sizes."""
    found = {}
    for path in folder.rglob("*"):
        try:
            found[str(path.relative_to(folder))] = path.stat().st_size
        except FileNotFoundError:
            continue
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check(runs: Runs, folder: Path, seed: int, kills: int) -> dict[str, bytes]:
    """Kill a run some times at random points; the same must come of it as without."""
    chance = random.Random(seed)
    runs.whole(folder / "whole")
    hits = 0
    for _ in range(kills):
        hits += runs.killed(folder / "killed", chance.randrange(1, 14), chance.uniform(0, 0.03))
    assert hits > 0
    runs.whole(folder / "killed")
    expected = contents(folder / "whole")
    assert contents(folder / "killed") == expected
    return expected


@pytest.mark.parametrize(("kind", "seed"), [("txt", 1), ("jsonl", 2), ("webdataset", 3)])
def test_killed_at_random_points_nothing_is_lost(tmp_path: Path, kind: str, seed: int) -> None:
    paths = write_pictures(tmp_path / "set", [f"{number:02d}.png" for number in range(COUNT)])
    paths[5].write_bytes(b"no picture")
    runs = Runs(tmp_path / "set", kind, fake=True)
    expected = check(runs, tmp_path, seed, kills=2 if kind == "jsonl" else 1)
    assert b"must be one of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF" in expected.pop("report.jsonl")
    captions = b"".join(expected.values())
    missing = {5}
    for shade in set(range(COUNT)) - missing:
        assert b"shade %d" % shade in captions


def test_interrupted_it_says_so_and_goes_on(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", [f"{number:02d}.png" for number in range(COUNT)])
    runs, out = Runs(tmp_path / "set", "csv", fake=True), tmp_path / "out"
    status, told = runs.interrupted(out)
    assert (status, told) == (130, "rediff: stopped; what is done is kept\n")
    assert not (out / "out.csv").exists()
    assert "0 failed" in runs.whole(out)
    assert (out / "out.csv").read_text().count("shade") == COUNT


def test_killed_with_the_embedded_checkpoint_nothing_is_lost(tmp_path: Path) -> None:
    noise(tmp_path / "set", 12)
    runs, out = Runs(tmp_path / "set", "jsonl", fake=False), tmp_path / "out"
    assert runs.killed(out, 3, 0.0)
    runs.whole(out)
    rows = [json.loads(line) for line in (out / "out.jsonl").read_text().splitlines()]
    settings = Settings.read({"max_batch": 4})
    order = Order.read(settings, {"canvas_length": CANVAS}, None)
    expected = captions_one_by_one(settings, order, sorted((tmp_path / "set").iterdir()))
    assert [(Path(row["source"]), row["caption"]) for row in rows] == list(expected.items())
    assert sorted(contents(out)) == ["out.jsonl", "report.jsonl"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", OUTPUTS)
def test_killed_often_with_the_embedded_checkpoint_nothing_is_lost(
    tmp_path: Path, kind: str
) -> None:
    noise(tmp_path / "set", 60)
    check(Runs(tmp_path / "set", kind, fake=False), tmp_path, seed=5, kills=6)


def noise(folder: Path, count: int) -> None:
    """Pictures that no two captioners would mistake for each other."""
    folder.mkdir()
    for number in range(count):
        Image.effect_noise((64, 48), 20 + 3 * number).convert("RGB").save(folder / f"{number}.png")

"""Several processes train what one would: data parallel, and sharded with accelerate's FSDP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conversation_samples import write_checkpoint, write_conversations
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    rows = write_conversations(folder / "squares")
    values = {
        "data": {"kind": "conversations", "sources": [{"name": "a", "rows": str(rows)}]},
        "start_from": str(write_checkpoint(folder / "base")),
        "batch_size": 4,
        "steps": 4,
        "log_every": 1,
        "save_every": 2,
        "rates": {"language": 3e-3, "projector": 3e-3, "vision": 1e-4},
        "ema": 0.5,
        "precision": "no",
        "save_dtype": "float32",
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(config: Path, out: Path, number: int, *mode: str) -> list[subprocess.Popen[str]]:
    """As many processes, with the environment that launchers give them."""
    command = [sys.executable, "tests/launched.py", *mode, "train", "stage1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    every = []
    for rank in range(number):
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        if number > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(number),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
        every.append(
            subprocess.Popen(
                [*command, "--config", str(config), "--out", str(out)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return every


def finish(every: list[subprocess.Popen[str]]) -> str:
    """What they print on stdout; each must succeed."""
    told = ""
    for process in every:
        out, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        told += out
    return told


def losses(folder: Path) -> list[dict[str, float]]:
    text = (folder / "captions" / "log.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def checkpoint(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(config: Path) -> Path:
    folder = config.parent / "alone"
    assert finish(start(config, folder, 1)) == f"{folder / 'checkpoint'}\n"
    return folder


def assert_same_run(folder: Path, alone: Path) -> None:
    for row, expected in zip(losses(folder), losses(alone), strict=True):
        assert row == pytest.approx(expected, abs=2e-4)
    expected_weights = checkpoint(alone)
    for name, value in checkpoint(folder).items():
        torch.testing.assert_close(value, expected_weights[name], rtol=1e-3, atol=1e-4)


def test_two_processes_train_as_one(config: Path, alone: Path, tmp_path: Path) -> None:
    assert finish(start(config, tmp_path, 2)) == f"{tmp_path / 'checkpoint'}\n"
    assert_same_run(tmp_path, alone)
    assert len(losses(tmp_path)) == 4


def test_shards_train_as_one_and_resume(config: Path, alone: Path, tmp_path: Path) -> None:
    killed = start(config, tmp_path, 2, "fsdp")
    while not (tmp_path / "captions" / "state" / "step.json").exists():
        assert all(process.poll() is None for process in killed)
        time.sleep(0.02)
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    state = tmp_path / "captions" / "state"
    assert (state / "weights-1-of-2.safetensors").exists()
    finish(start(config, tmp_path, 2, "fsdp"))
    assert_same_run_after_kill(tmp_path, alone)


def assert_same_run_after_kill(folder: Path, alone: Path) -> None:
    """A killed run may have logged steps that it then repeats."""
    by_step = {row["step"]: row for row in losses(folder)}
    for expected in losses(alone):
        assert by_step[expected["step"]] == pytest.approx(expected, abs=2e-4)
    expected_weights = checkpoint(alone)
    for name, value in checkpoint(folder).items():
        torch.testing.assert_close(value, expected_weights[name], rtol=1e-3, atol=1e-4)

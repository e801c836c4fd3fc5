"""The kernels compile for real GPUs, which the interpreter does not show."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_spilling_registers(capability: int, tmp_path: Path) -> None:
    """In a process of its own: the interpreter must be off, and what it sets up stays."""
    figures = tmp_path / "code.json"
    command = [sys.executable, "-m", "benchmarks.machine_code"]
    options = ["--capability", str(capability), "--json", str(figures)]
    subprocess.run([*command, *options], cwd=ROOT, timeout=280, check=True)
    launches = json.loads(figures.read_text(encoding="utf-8"))["launches"]
    assert {entry["kernel"] for entry in launches} == {
        "_part_kernel",
        "_join_kernel",
        "_tile_kernel",
        "_canvas_kernel",
    }
    assert all(entry["stack_bytes"] == 0 for entry in launches), launches
    # At 15 instructions a logit an H200 would no longer be as fast as its memory.
    plain = [one for one in launches if one["call"].startswith("select_tokens, bf")]
    assert plain[0]["instructions_a_logit"] < 15

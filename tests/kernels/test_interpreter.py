"""Runs the Triton tests of this folder in a process where Triton interprets its kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

LAZY = """
import sys
import kernels.ops
assert "triton" not in sys.modules, "triton was loaded"
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are tested on the GPU itself")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted already")
def test_kernels_in_the_interpreter() -> None:
    files = sorted(str(file) for file in Path(__file__).parent.glob("test_triton_*.py"))
    assert len(files) == 3
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_operations_do_not_load_triton_without_a_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAZY], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

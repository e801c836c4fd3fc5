"""Loading a checkpoint takes no second copy of the weights."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.checkpoint import (
    PeakMemory,
    anonymous_bytes,
    measure_in_subprocess,
    write_synthetic,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads RssAnon of /proc")


def test_peak_memory_of_loading(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "synthetic", 0.2)
    for dtype, size in (("bfloat16", 2), ("float32", 4)):
        figures = measure_in_subprocess(tmp_path / "synthetic", dtype)
        assert figures["loaded"] == pytest.approx(size * 1e8, rel=0.2)
        assert 0.9 < figures["ratio"] <= 1.15


def test_peak_memory_sees_what_was_freed_again() -> None:
    with PeakMemory() as memory:
        held = bytearray(b"x" * 50_000_000)
        while memory.peak < memory.baseline + 45_000_000:
            anonymous_bytes()
        del held
    assert memory.peak - memory.baseline < 150_000_000

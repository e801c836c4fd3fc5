"""Processors and memory on systems that lack Linux's calls."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from rediff_model.machine import available_memory, total_memory, usable_processors
from server.bulk.options import BulkOptions
from server.doctor import examine
from server.engine.config import EngineConfig

if TYPE_CHECKING:
    from pathlib import Path


def _unknown(name: str) -> int:
    raise ValueError("unrecognized configuration name")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without affinity and without any name of sysconf."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "sysconf", _unknown)


@pytest.mark.usefixtures("bare")
def test_without_linux_calls_every_processor_counts_and_memory_is_unknown(tmp_path: Path) -> None:
    assert usable_processors() == os.cpu_count()
    assert total_memory() is None
    assert available_memory(tmp_path / "none") is None


@pytest.mark.usefixtures("bare")
def test_rediff_caption_counts_its_workers_without_affinity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert BulkOptions.read({"files": ("a.png",)}).workers == 4


def test_available_memory_is_what_meminfo_says(tmp_path: Path) -> None:
    table = tmp_path / "meminfo"
    table.write_text("MemTotal: 9 kB\nMemAvailable:       7 kB\n")
    assert available_memory(table) == 7 * 1024


@pytest.mark.usefixtures("bare")
def test_doctor_finds_nothing_wrong_with_processors_and_memory() -> None:
    found = {one.what: one for one in examine(EngineConfig(model="none", device="cpu"))}
    assert found["processors"].ok
    assert found["free memory"].ok, found["free memory"].value

"""Processors and memory of this machine, on every platform."""

from __future__ import annotations

import os
from pathlib import Path


def usable_processors() -> int:
    """Number of processors that this process may use, at least 1.

    macOS has no affinity; all processors count there.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_memory() -> int | None:
    """Physical memory in bytes; None where the system does not report it."""
    return _pages("SC_PHYS_PAGES")


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that can be allocated without swapping; None where the system does not report it.

    Linux counts file caches as used in `sysconf`, so `meminfo` goes first.
    """
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return _pages("SC_AVPHYS_PAGES")


def _pages(name: str) -> int | None:
    """A number of pages in bytes; macOS knows some of the names only."""
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None

"""Shared set-up of the tests: one thread of torch, no hub, helpers on the path."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch: tests run in several processes, and threads that wait for each other must not spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Tests ask servers of their own, often with clients that know no loopback.
for _name in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ.pop(_name, None)
    os.environ.pop(_name.upper(), None)
sys.path.insert(0, str(Path(__file__).parent))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a system test that is skipped has failed: CI tests what it claims."""
    report = yield
    if (
        os.environ.get("CI") == "true"
        and report.skipped
        and not hasattr(report, "wasxfail")
        and item.get_closest_marker("system")
    ):
        report.outcome = "failed"
        report.longrepr = f"a system test was skipped with CI=true: {report.longrepr}"
    return report

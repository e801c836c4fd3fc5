"""What `/metrics` holds besides the server's own figures: versions, the process, and no noise."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from prometheus_client import ProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from server import __version__
from server.metrics import Metrics

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


def families(metrics: Metrics) -> dict[str, Metric]:
    text = metrics.text().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(metrics: Metrics, name: str) -> float:
    found = families(metrics)[name].samples
    assert len(found) == 1
    return float(found[0].value)


def test_the_build_is_named() -> None:
    (sample,) = families(Metrics())["rediff_build_info"].samples
    assert sample.value == 1
    assert sample.labels == {
        "version": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
    }


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")
def test_the_process_is_measured() -> None:
    metrics = Metrics()
    assert 0 < value(metrics, "process_cpu_seconds") <= time.process_time() + 1
    assert value(metrics, "process_resident_memory_bytes") > 2**20
    assert time.time() - 86_400 < value(metrics, "process_start_time_seconds") < time.time() + 60


def test_without_proc_processor_and_start_time_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    # As ProcessCollector answers where there is no /proc, on macOS and Windows.
    monkeypatch.setattr(ProcessCollector, "collect", lambda self: [])
    metrics = Metrics()
    assert "process_resident_memory_bytes" not in families(metrics)
    assert 0 < value(metrics, "process_cpu_seconds") <= time.process_time()
    assert time.time() - 86_400 < value(metrics, "process_start_time_seconds") <= time.time()


def test_no_series_tells_when_another_was_made() -> None:
    metrics = Metrics()
    metrics.requests.labels(outcome="caption").inc()
    metrics.latency.observe(1.0)
    lines = metrics.text().decode().splitlines()
    assert 'rediff_requests_total{outcome="caption"} 1.0' in lines
    assert "rediff_e2e_request_latency_seconds_count 1.0" in lines
    assert not [line for line in lines if "_created" in line]

"""Prometheus metrics of the server, in a registry of their own."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from server import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STEP_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_IMPORTED: Final = time.time()


class _Registry(CollectorRegistry):
    """A registry without the `_created` time series that prometheus_client adds to counters."""

    def collect(self) -> Iterable[Metric]:
        for metric in super().collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


class _Process(ProcessCollector):
    """CPU, memory, files and start time of the process; CPU and start time without /proc too."""

    def collect(self) -> Iterable[Metric]:
        found = list(super().collect())
        names = {metric.name for metric in found}
        if "process_cpu_seconds" not in names:
            text = "Total user and system CPU time spent in seconds."
            found.append(CounterMetricFamily("process_cpu_seconds", text, time.process_time()))
        if "process_start_time_seconds" not in names:
            text = "Start time of the process since unix epoch in seconds."
            found.append(GaugeMetricFamily("process_start_time_seconds", text, _IMPORTED))
        return found


class Metrics:
    """Every metric as an attribute. Passed to whoever counts; there is no global one."""

    def __init__(self) -> None:
        registry = self.registry = _Registry()
        _Process(registry=registry)
        Info(
            "rediff_build", "Versions of the server and of what it runs on.", registry=registry
        ).info(
            {
                "version": __version__,
                "python": platform.python_version(),
                "torch": version("torch"),
            }
        )
        self.engine_up = Gauge(
            "rediff_engine_up", "1 while the engine takes work.", registry=registry
        )
        self.running = Gauge(
            "rediff_num_requests_running", "Requests in the running batch.", registry=registry
        )
        self.waiting = Gauge(
            "rediff_num_requests_waiting",
            "Requests admitted but not running: decoding or queued.",
            registry=registry,
        )
        self.requests = Counter(
            "rediff_requests",
            "Admitted requests by how they ended.",
            ["outcome"],
            registry=registry,
        )
        self.rejections = Counter(
            "rediff_admission_rejections",
            "Requests refused before they were admitted.",
            ["reason"],
            registry=registry,
        )
        self.errors = Counter(
            "rediff_errors", "Failures inside the engine by kind.", ["kind"], registry=registry
        )
        self.cancellations = Counter(
            "rediff_cancellations",
            "Requests given up by their callers, by where the engine had them.",
            ["where"],
            registry=registry,
        )
        self.shed = Counter(
            "rediff_requests_shed",
            "Requests taken out of the batch because memory ran out.",
            registry=registry,
        )
        self.row_budget = Gauge(
            "rediff_row_budget",
            "Prompt and canvas rows that may run at once; lower after memory ran out.",
            registry=registry,
        )
        self.rows = Gauge(
            "rediff_rows_running", "Prompt and canvas rows that run.", registry=registry
        )
        self.latency = Histogram(
            "rediff_e2e_request_latency_seconds",
            "Admission to the end of a request that got its caption.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_time = Histogram(
            "rediff_request_queue_time_seconds",
            "Wait between the prepared prompt and the first step's batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_step_time = Histogram(
            "rediff_time_to_first_step_seconds",
            "Arrival of a request to the end of its first step.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.decode_time = Histogram(
            "rediff_image_decode_seconds",
            "Decoding of one picture.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.vision_time = Histogram(
            "rediff_vision_seconds",
            "Tower and projector for one picture.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.vision_queries = Counter(
            "rediff_vision_cache_queries", "Pictures looked up by content.", registry=registry
        )
        self.vision_hits = Counter(
            "rediff_vision_cache_hits", "Pictures whose features were there.", registry=registry
        )
        self.step_time = Histogram(
            "rediff_step_duration_seconds",
            "One step of a batch.",
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "rediff_batch_occupancy", "Requests in a step.", buckets=_COUNTS, registry=registry
        )
        self.request_steps = Histogram(
            "rediff_request_steps", "Steps that a caption took.", buckets=_COUNTS, registry=registry
        )
        self.committed = Counter(
            "rediff_tokens_committed", "Tokens of finished captions.", registry=registry
        )
        self.revised = Counter(
            "rediff_tokens_revised", "Revisions in finished captions.", registry=registry
        )

        self.step_revealed = Histogram(
            "rediff_step_tokens_committed",
            "Masked positions that one step revealed, over all requests in it.",
            buckets=(0, *_COUNTS),
            registry=registry,
        )
        self.step_revised = Histogram(
            "rediff_step_tokens_revised",
            "Revealed tokens that one step replaced, over all requests in it.",
            buckets=(0, *_COUNTS),
            registry=registry,
        )
        self.canvas_rows = Counter(
            "rediff_canvas_positions_computed", "Canvas rows of all steps.", registry=registry
        )
        self.refreshes = Counter(
            "rediff_prompt_refreshes",
            "Prompts computed again while their request ran.",
            registry=registry,
        )

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes."""
        return generate_latest(self.registry)

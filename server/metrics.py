"""Prometheus metrics of the server, in a registry of their own."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STEP_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Every metric as an attribute. Passed to whoever counts; there is no global one."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
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

    def text(self) -> bytes:
        """The exposition format that Prometheus scrapes."""
        return generate_latest(self.registry)

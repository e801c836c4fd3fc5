"""Traces of requests by OpenTelemetry, written when a request has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from rediff_model.network.addresses import is_local

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from server.logs import RequestRecord


class TracingUnavailable(Exception):
    """The packages of the `otel` extra are not installed; the message is one line."""


class Traces:
    """A span a request, a child of the caller's `traceparent`, with the caption's stages below it.

    All times are known when a request ends, so nothing of this runs while it is computed.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("rediff-serve")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str, service_name: str) -> Self:
        """Send spans by OTLP over HTTP in the background.

        Raises:
            TracingUnavailable: the packages are missing.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from requests import Session
        except ImportError:
            raise TracingUnavailable(
                "--otlp-endpoint needs the extra otel: pip install 'rediff-serve[otel]'"
            ) from None
        session = Session()
        # A proxy does not reach this machine's own collector.
        session.trust_env = not is_local(urlsplit(endpoint).hostname or "")
        exporter = OTLPSpanExporter(endpoint=endpoint, session=session)
        resource = Resource.create({"service.name": "rediff-serve", "rediff.model": service_name})
        # The process ends its own way; an atexit hook would only wait a second time.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def __call__(self, record: RequestRecord) -> None:
        """Write the spans of a request that has ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        parent = self._propagator.extract(record.headers)
        root = self._tracer.start_span(
            f"{record.method} {record.route or '?'}",
            parent,
            kind=SpanKind.SERVER,
            start_time=_nanoseconds(record.began_at),
            attributes={
                "http.request.method": record.method,
                "http.route": record.route or "",
                "http.response.status_code": record.status,
                "rediff.request_id": record.request_id,
            },
        )
        if record.error is not None:
            root.set_attribute("error.type", record.error)
        if record.status >= 500:
            root.set_status(Status(StatusCode.ERROR))
        timing, end = record.timing, record.caption_at
        if timing is not None and end is not None:
            counts = {"rediff.steps": record.steps or 0, "rediff.tokens": record.tokens or 0}
            stages: tuple[tuple[str, float, dict[str, int]], ...] = (
                ("steps", timing.generate, counts),
                ("queue", timing.queue, {}),
                ("vision", timing.vision, {}),
                ("decode", timing.decode, {}),
            )
            below = set_span_in_context(root)
            # Each stage ends where the next begins, so they are laid out backwards.
            for name, seconds, attributes in stages:
                began = _nanoseconds(end - seconds)
                span = self._tracer.start_span(name, below, start_time=began, attributes=attributes)
                span.end(_nanoseconds(end))
                end -= seconds
        root.end(_nanoseconds(record.ended_at))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)

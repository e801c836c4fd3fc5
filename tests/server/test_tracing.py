"""Spans of a request, read back from an exporter in memory."""

from __future__ import annotations

import base64
import sys
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from server_fakes import FakeRunner, png

from server.api.app import create_app
from server.metrics import Metrics
from server.service import Service
from server.settings import Settings
from server.tracing import Traces, TracingUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from opentelemetry.sdk.trace import ReadableSpan
    from requests import Session

pytestmark = pytest.mark.anyio

BODY = {"image": {"base64": base64.b64encode(png()).decode()}, "prompt": "red apples"}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@asynccontextmanager
async def traced() -> AsyncIterator[tuple[httpx.AsyncClient, InMemorySpanExporter]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = Settings.read({"model": "fake"})
    service = Service(FakeRunner, settings.engine(), Metrics(), "fake")
    transport = httpx.ASGITransport(create_app(service, settings, Traces(provider)))
    await service.start()
    await service.settled()
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client, exporter
    await service.close()
    provider.shutdown()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caption_has_a_span_for_each_stage_below_the_callers(stream: bool) -> None:
    async with traced() as (client, exporter):
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
        await client.post("/caption", json=BODY | {"stream": stream}, headers=headers)
        spans = by_name(exporter)
    assert set(spans) == {"POST /caption", "decode", "vision", "queue", "steps"}
    root = spans.pop("POST /caption")
    assert root.context is not None
    assert root.parent is not None
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == PARENT
    assert dict(root.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/caption",
        "http.response.status_code": 200,
        "rediff.request_id": "mine",
    }
    assert dict(spans["steps"].attributes or {}) == {"rediff.steps": 2, "rediff.tokens": 2}
    ordered = sorted(spans.values(), key=lambda span: (span.start_time or 0, span.end_time or 0))
    for span in ordered:
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
    for one, following in pairwise(ordered):
        # One stage ends where the next begins.
        assert abs((one.end_time or 0) - (following.start_time or 0)) < 1_000_000
    assert (root.end_time or 0) >= (ordered[-1].end_time or 0)


async def test_a_request_without_a_trace_begins_one_and_an_error_is_told() -> None:
    async with traced() as (client, exporter):
        for given in ({}, {"traceparent": "nonsense"}):
            exporter.clear()
            await client.post("/caption", json=BODY | {"prompt": "boom step"}, headers=given)
            (root,) = exporter.get_finished_spans()
            assert root.parent is None
            assert (root.attributes or {})["error.type"] == "internal_error"
            assert not root.status.is_ok


async def test_no_span_holds_content() -> None:
    async with traced() as (client, exporter):
        await client.post("/caption", json=BODY)
        await client.get("/apples?red=apples")
        text = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert "apples" not in text


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracingUnavailable, match=r"rediff-serve\[otel\]"):
        Traces.to("http://127.0.0.1:1/v1/traces", "fake")


@pytest.mark.parametrize(("host", "proxied"), [("127.0.0.1", False), ("collector", True)])
def test_spans_go_to_the_endpoint(
    monkeypatch: pytest.MonkeyPatch, host: str, proxied: bool
) -> None:
    from opentelemetry.exporter.otlp.proto.http import trace_exporter

    made: list[tuple[str, bool]] = []

    class Exporter(InMemorySpanExporter):
        def __init__(self, endpoint: str, session: Session) -> None:
            super().__init__()
            made.append((endpoint, session.trust_env))

    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", Exporter)
    traces = Traces.to(f"http://{host}:1/v1/traces", "fake")
    traces.close()
    assert made == [(f"http://{host}:1/v1/traces", proxied)]

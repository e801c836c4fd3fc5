"""Loading, full queues, deadlines, callers that leave, failures of the engine, and stopping."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from server_fakes import Call, FakeRunner, png, running

from server.api.app import create_app
from server.metrics import Metrics
from server.service import Service
from server.settings import Settings

if TYPE_CHECKING:
    from server.engine.request import Runner

pytestmark = pytest.mark.anyio

PICTURE = base64.b64encode(png()).decode()


def body(**fields: Any) -> bytes:
    return json.dumps({"image": {"base64": PICTURE}, **fields}).encode()


async def test_while_the_model_loads_only_liveness_is_good() -> None:
    loaded = threading.Event()

    def load() -> Runner:
        loaded.wait(10)
        return FakeRunner()

    settings = Settings.read({"model": "fake"})
    service = Service(load, settings.engine(), Metrics(), "fake")
    transport = httpx.ASGITransport(create_app(service, settings))
    await service.start()
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "fake"
        assert (await client.get("/version")).json()["status"] == "loading"
        for answer in (await client.get("/health"), await client.post("/caption", content=body())):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "not_ready"
            assert int(answer.headers["retry-after"]) > 0
        loaded.set()
        assert await service.settled() == "ready"
        for path in ("/health", "/health/ready"):
            assert (await client.get(path)).json() == {"status": "ready"}
            assert (await client.head(path)).status_code == 200
        assert (await client.get("/version")).json()["canvas_length"] == 8
    await service.close()


async def test_a_model_that_cannot_be_loaded_is_told() -> None:
    def load() -> Runner:
        raise ValueError("model.safetensors is missing")

    told = asyncio.Event()
    settings = Settings.read({"model": "fake"})
    service = Service(load, settings.engine(), Metrics(), "fake", told.set)
    await service.start()
    assert await service.settled() == "failed"
    await asyncio.wait_for(told.wait(), 10)
    assert str(service.load_error) == "model.safetensors is missing"
    transport = httpx.ASGITransport(create_app(service, settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/health/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_down")
        assert (await client.get("/health/live")).status_code == 200
    await service.close()


async def test_a_full_queue_is_429_at_once_and_frees_again() -> None:
    async with running(max_batch=1, max_queue=2) as server:
        server.runner.free_running = False
        calls = [Call(server.app, "/caption", body(), {}) for _ in range(3)]
        await server.active(3)
        answer = await server.client.post("/caption", content=body())
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "queue_full"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert int(answer.headers["retry-after"]) >= 1
        server.runner.steps_allowed.release(100)
        for call in calls:
            await call.task
            assert call.status == 200
        assert (await server.client.post("/caption", content=body())).status_code == 200


@pytest.mark.parametrize("where", ["preparing", "queued", "running"])
async def test_a_deadline_is_504_and_frees_the_place(where: str) -> None:
    async with running(max_batch=1) as server:
        if where == "preparing":
            server.runner.prepare_allowed.clear()
        server.runner.free_running = False
        if where == "queued":
            first = Call(server.app, "/caption", body(), {})
            await server.stepping()
        answer = await server.client.post("/caption", content=body(timeout_seconds=0.05))
        assert answer.status_code == 504
        assert answer.json()["error"] == {
            "message": "no caption within 0.05 s",
            "type": "timeout_error",
            "param": None,
            "code": "deadline_exceeded",
        }
        assert server.service.active == (where == "queued")
        server.runner.prepare_allowed.set()
        server.runner.steps_allowed.release(100)
        if where == "queued":
            await first.task
            assert first.status == 200
        assert (await server.client.post("/caption", content=body())).status_code == 200
        # The late request was never stepped beyond the step that it was waiting in.
        assert len(server.runner.batches) <= 2 + 2 * (where == "queued") + 1


async def test_a_deadline_in_a_stream_is_an_error_event() -> None:
    async with running() as server:
        server.runner.free_running = False
        call = Call(server.app, "/caption", body(stream=True, timeout_seconds=0.05), {})
        event = await call.event()
        assert event is not None
        assert event[0] == "error"
        assert event[1]["error"]["code"] == "deadline_exceeded"
        await call.leave()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/caption", "/v1/chat/completions"])
async def test_a_caller_who_leaves_frees_the_place_by_the_next_step(
    path: str, stream: bool
) -> None:
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
    chat = {"messages": [{"role": "user", "content": [url]}], "stream": stream}
    sent = body(stream=stream) if path == "/caption" else json.dumps(chat).encode()
    async with running() as server:
        server.runner.free_running = False
        calls = [Call(server.app, path, sent, {}) for _ in range(2)]
        await server.active(2)
        await asyncio.sleep(0.05)
        server.runner.steps_allowed.release()
        await server.stepped(1)
        await calls[0].leave()
        assert server.service.active == 1
        server.runner.steps_allowed.release(100)
        await calls[1].block()
        await calls[1].leave()
        assert server.service.active == 0
        # The first step may hold one of the two; after the first left, no step holds both.
        assert server.runner.batches[2:].count(2) == 0
        assert (await server.client.post("/caption", content=body())).status_code == 200


async def test_a_caller_who_leaves_while_waiting_is_never_run() -> None:
    async with running(max_batch=1) as server:
        server.runner.free_running = False
        first = Call(server.app, "/caption", body(prompt="first"), {})
        await server.stepping()
        second = Call(server.app, "/caption", body(prompt="second"), {})
        await server.queued(1)
        await second.leave()
        assert server.service.active == 1
        server.runner.free_running = True
        server.runner.steps_allowed.release(100)
        await first.task
        await server.client.post("/caption", content=body(prompt="third"))
        assert server.runner.starts == [["first"], ["third"]]


async def test_a_caller_who_leaves_while_the_picture_is_read_frees_the_place() -> None:
    async with running() as server:
        server.runner.prepare_allowed.clear()
        call = Call(server.app, "/caption", body(), {})
        await server.active(1)
        await call.leave()
        assert server.service.active == 0
        server.runner.prepare_allowed.set()
        assert (await server.client.post("/caption", content=body())).status_code == 200


async def test_one_request_that_cannot_start_does_not_hurt_the_others() -> None:
    async with running() as server:
        server.runner.free_running = False
        calls = [Call(server.app, "/caption", body(), {})]
        await server.stepping()
        calls += [
            Call(server.app, "/caption", body(prompt=prompt), {})
            for prompt in ("good one", "boom start", "good two")
        ]
        await server.queued(3)
        server.runner.free_running = True
        server.runner.steps_allowed.release(100)
        for call in calls:
            await call.task
        assert [call.status for call in calls] == [200, 200, 500, 200]


async def test_a_step_that_raises_fails_its_batch_and_no_other() -> None:
    async with running() as server:
        server.runner.free_running = False
        calls = [Call(server.app, "/caption", body(), {})]
        await server.stepping()
        calls += [
            Call(server.app, "/caption", body(prompt=prompt), {})
            for prompt in ("good", "boom step")
        ]
        await server.queued(2)
        server.runner.free_running = True
        server.runner.steps_allowed.release(100)
        for call in calls:
            await call.task
        # The first one was half done, and in the step that the others joined.
        assert [call.status for call in calls] == [500, 500, 500]
        assert (await server.client.post("/caption", content=body())).status_code == 200
        assert b'rediff_errors_total{kind="step"} 3.0' in server.service.metrics.text()


async def test_an_engine_that_dies_answers_everybody_and_turns_readiness_red() -> None:
    class Dying(FakeRunner):
        def row(self, job: Any) -> Any:
            raise SystemExit

    async with running(Dying()) as server:
        answer = await server.client.post("/caption", content=body())
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_down"
        assert (await server.client.get("/health/ready")).status_code == 503
        live = await server.client.get("/health/live")
        assert (live.status_code, live.json()["error"]["code"]) == (503, "engine_down")
        assert (await server.client.post("/caption", content=body())).status_code == 503
        assert b"rediff_engine_up 0.0" in server.service.metrics.text()


async def test_draining_refuses_new_work_and_ends_the_running() -> None:
    async with running() as server:
        server.runner.free_running = False
        call = Call(server.app, "/caption", body(), {})
        await server.stepping()
        drain = asyncio.ensure_future(server.service.drain(10))
        await asyncio.sleep(0)
        for answer in (
            await server.client.get("/health/ready"),
            await server.client.post("/caption", content=body()),
        ):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "draining"
            assert answer.headers["retry-after"]
        assert not drain.done()
        server.runner.steps_allowed.release(100)
        await drain
        await call.task
        assert call.status == 200


async def test_after_the_grace_time_what_is_left_gets_an_error() -> None:
    async with running() as server:
        server.runner.free_running = False
        plain = Call(server.app, "/caption", body(), {})
        stream = Call(server.app, "/caption", body(stream=True), {})
        await server.active(2)
        await server.stepping()
        await server.service.drain(0.05)
        await plain.task
        assert plain.status == 503
        event = await stream.event()
        assert event is not None
        assert event[0] == "error"
        assert event[1]["error"]["code"] == "draining"
        await stream.leave()
        assert server.service.active == 0


async def test_metrics_count_what_happened() -> None:
    async with running() as server:
        await server.client.post("/caption", content=body())
        await server.client.post("/caption", content=b"")
        text = (await server.client.get("/metrics")).text
        for line in (
            "rediff_engine_up 1.0",
            "rediff_num_requests_running 0.0",
            "rediff_num_requests_waiting 0.0",
            'rediff_requests_total{outcome="caption"} 1.0',
            "rediff_e2e_request_latency_seconds_count 1.0",
            "rediff_step_duration_seconds_count 2.0",
            "rediff_request_steps_sum 2.0",
            "rediff_tokens_committed_total 5.0",
            "rediff_tokens_revised_total 1.0",
        ):
            assert line in text

"""More requests than can be served: each is answered, refusals at once, and captions go on."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from typing import TYPE_CHECKING

import pytest
from server_fakes import Call, FakeRunner, png, running
from server_wire import serving

from benchmarks.load import Load, caption_bodies
from benchmarks.outcomes import summarise
from benchmarks.wire import Wire
from server.api.process import listen

if TYPE_CHECKING:
    from PIL import Image

    from rediff_model.chat_template import Question
    from server.engine.request import Prepared

BODY = json.dumps({"image": {"base64": base64.b64encode(png()).decode()}}).encode()


def test_answers_are_not_held_back_for_an_acknowledgement() -> None:
    with (
        listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()[:2]),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.anyio
async def test_refusals_do_not_wait_for_the_engine() -> None:
    async with running(max_batch=2, max_queue=3) as server:
        server.runner.free_running = False
        admitted = [Call(server.app, "/caption", BODY, {}) for _ in range(5)]
        await server.active(5)
        # The engine stands still: whatever waited for it would never be answered.
        refused = await asyncio.gather(
            *(server.client.post("/caption", content=BODY) for _ in range(50))
        )
        assert {answer.status_code for answer in refused} == {429}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert server.service.active == 5
        server.runner.steps_allowed.release(1000)
        for call in admitted:
            await call.task
            assert call.status == 200
        metrics = server.service.metrics.registry
        labels = {"reason": "queue_full"}
        assert metrics.get_sample_value("rediff_admission_rejections_total", labels) == 50


class SlowRunner(FakeRunner):
    """Takes twenty milliseconds for a picture."""

    def prepare(self, image: Image.Image, question: Question | None) -> Prepared:
        time.sleep(0.02)
        return super().prepare(image, question)


@pytest.mark.parametrize("sse", [False, True])
def test_every_request_of_an_overload_is_answered(sse: bool) -> None:
    async def run(address: str) -> None:
        wire = Wire(f"http://{address}", {}, timeout=60)
        bodies = caption_bodies([png(), png(9, 9)], {"steps": 2}, sse=sse)
        load = Load(wire, [wire.post("/caption", body) for body in bodies])
        outcomes, began = await load.opened(300, 1.0, seed=0)
        figures = summarise(outcomes, began, 1.0, 60)
        # As many as chance gives, whether or not the server keeps up.
        assert figures["sent"] == 292
        assert figures["outcomes"].keys() == {"200", "429"}
        assert figures["refused_without_retry_after"] == figures["lost"] == 0
        again, _ = await load.closed(1, 0.1)
        assert {outcome.kind for outcome in again} == {"200"}
        await wire.close()

    with serving(SlowRunner, max_batch=1, max_queue=0) as address:
        asyncio.run(run(address))

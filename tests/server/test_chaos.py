"""Steps that raise, memory that runs out, callers that leave, an engine that is killed: every
request gets an answer, no slot is lost, and what is answered is right."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch
import uvicorn
from server_fakes import Call, png, running
from torch.overrides import TorchFunctionMode

from benchmarks.load import caption_bodies
from benchmarks.outcomes import Outcome
from benchmarks.wire import Lost, Wire
from rediff_model.model import Captioner
from rediff_model.runtime.kv_buffers import Buffers
from rediff_model.runtime.prompt_cache import Context
from rediff_model.sampling import sampler
from rediff_model.sampling.outputs import Generation
from server.api.app import create_app
from server.api.process import DrainingServer
from server.engine.model_runner import SamplerRunner
from server.metrics import Metrics
from server.request_handle import Ticket
from server.service import Service
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from server.engine.request import Event

pytestmark = pytest.mark.anyio

ERRORS: tuple[Callable[[], Exception], ...] = (
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    lambda: RuntimeError("CUDA error: device-side assert triggered"),
    lambda: AssertionError("a secret path /root/secret"),
    lambda: KeyError(7),
)
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {},
    {"tokens_per_step": 1},
    {"preset": "adaptive"},
    {"canvas_length": 32, "block_length": 8, "tokens_per_step": 2},
    {"cfg_scale": 1.0, "tokens_per_step": 2},
    {"temperature": 0.7, "seed": 3},
)
PLACES = ("join", "step", "pass", "move", "tell", "count")
PICTURES = tuple(png(20 + 9 * number, 40) for number in range(3))
KNOWN_CODES = {
    429: {"queue_full"},
    500: {"internal_error"},
    503: {"not_ready", "engine_down"},
    504: {"deadline_exceeded"},
}


OPERATIONS = {"pass": 150, "move": 8}
"""What raises within its work, and before which of its operations at the latest."""


class Raising(TorchFunctionMode):
    """Raises at an operation of torch."""

    def __init__(self, error: BaseException, operations: int) -> None:
        super().__init__()
        self._error = error
        self._left = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._left == 0:
            raise self._error
        self._left -= 1
        return func(*args, **(kwargs or {}))


@dataclass
class Trouble:
    """What goes wrong in the engine's thread."""

    chance: random.Random
    rate: float = 0.0
    """Part of joins, steps, forward passes and moves of prompts that raise, the last two within
    their work or after it."""
    errors: Sequence[Callable[[], Exception]] = ERRORS
    only: str | None = None
    """The one place that raises, if not all do."""
    deadly: str | None = None
    """Where the engine is killed next, one of PLACES."""
    raised: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By place and kind of error."""

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The sampler's `work`, with trouble."""

        def troubled(*args: Any, **kwargs: Any) -> Any:
            self.kill(name)
            if self.only not in (None, name) or self.chance.random() >= self.rate:
                return work(*args, **kwargs)
            error = self.chance.choice(self.errors)()
            self.raised[name, type(error).__name__] += 1
            if name in OPERATIONS:
                with Raising(error, self.chance.randrange(OPERATIONS[name])):
                    work(*args, **kwargs)
            raise error

        return troubled

    def kill(self, place: str) -> None:
        """End the thread if this is the place."""
        if self.deadly == place:
            self.deadly = None
            raise SystemExit


@dataclass
class Served:
    """A server with trouble, and the account of what callers got."""

    service: Service
    wire: Wire
    trouble: Trouble
    expected: dict[bytes, str] = field(default_factory=dict)
    """The caption of each request."""
    counts: Counter[str] = field(default_factory=Counter)

    async def ask(self, request: bytes) -> Outcome:
        """Send a request, wait for its answer and check it."""
        now = time.perf_counter()
        result: Any
        try:
            result = await self.wire.send(request)
        except Lost as reason:
            result = reason
        outcome = Outcome(now, now, time.perf_counter(), result)
        self.counts[outcome.kind] += 1
        if isinstance(result, Lost):
            return outcome
        if outcome.kind == "200":
            known = self.expected.setdefault(request, outcome.caption["caption"])
            assert outcome.caption["caption"] == known
        elif result.status == 200:
            assert outcome.kind.removeprefix("200 ") in set.union(*KNOWN_CODES.values())
        else:
            assert json.loads(result.body)["error"]["code"] in KNOWN_CODES[result.status]
            assert ("retry-after" in result.headers) == (result.status in (429, 503))
            assert b"secret" not in result.body
        return outcome

    async def leave(self, request: bytes, chance: random.Random) -> None:
        """Send a request, or a part of it, and hang up at some moment before the answer's end."""
        self.counts["left"] += 1
        reader, writer = await asyncio.open_connection(*self.wire.address)
        part = chance.choice((chance.random(), 1.0, 1.0, 1.0))
        writer.write(request[: int(part * len(request))])
        await asyncio.sleep(chance.random() * 0.05)
        if chance.random() < 0.5:
            try:
                async with asyncio.timeout(chance.random()):
                    await reader.readexactly(chance.randrange(1, 2000))
            except (TimeoutError, asyncio.IncompleteReadError, OSError):
                pass
        if chance.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()

    async def crowd(self, callers: int, each: int, seed: int) -> None:
        """Callers of all kinds at a time, `each` with so many requests."""
        requests = list(self.expected)

        async def call(number: int) -> None:
            chance = random.Random(seed * 1000 + number)
            for _ in range(each):
                request = chance.choice(requests)
                kind = chance.random()
                if kind < 0.3:
                    await self.leave(request, chance)
                elif kind < 0.45:
                    body = json.loads(request.partition(b"\r\n\r\n")[2])
                    body["timeout_seconds"] = chance.choice((0.001, 0.02, 0.1))
                    late = self.wire.post("/caption", json.dumps(body).encode())
                    self.expected.setdefault(late, self.expected[request])
                    await self.ask(late)
                else:
                    await self.ask(request)

        await asyncio.gather(*(call(number) for number in range(callers)))

    async def quiet(self) -> None:
        """Wait until nobody is left; whoever holds a slot for ever makes this fail."""
        async with asyncio.timeout(30):
            while self._busy():  # noqa: ASYNC110 - what is watched lives in another thread
                await asyncio.sleep(0.01)

    def _busy(self) -> bool:
        engine, sample = self.service.engine, self.service.metrics.registry.get_sample_value
        # A dead engine sets no gauge any more.
        rows = sample("rediff_rows_running") if engine.state == "ready" else 0
        return bool(self.service.active or engine.queued or engine.running or rows)


@asynccontextmanager
async def served(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    samplings: Sequence[dict[str, Any]] = SAMPLINGS,
) -> AsyncIterator[Served]:
    """A tiny model behind a socket of loopback, with the captions of all requests known."""
    settings = Settings.read(
        {"model": str(checkpoint), "max_batch": 6, "max_queue": 6, "request_timeout": 600}
    )
    captioner = Captioner.load(checkpoint, dtype=torch.float64)
    trouble, metrics = Trouble(random.Random(seed)), Metrics()
    tell, count = Ticket.from_engine, metrics.step_time.observe

    def told(ticket: Ticket, event: Event) -> None:
        trouble.kill("tell")
        tell(ticket, event)

    def counted(seconds: float) -> None:
        trouble.kill("count")
        count(seconds)

    with monkeypatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listener:
        patch.setattr(sampler, "step", trouble.around("step", sampler.step))
        patch.setattr(sampler, "join", trouble.around("join", sampler.join))
        patch.setattr(Context, "hidden", trouble.around("pass", Context.hidden))
        patch.setattr(Buffers, "move", trouble.around("move", Buffers.move))
        patch.setattr(Ticket, "from_engine", told)
        patch.setattr(metrics.step_time, "observe", counted)
        config = settings.engine()
        service = Service(lambda: SamplerRunner(captioner, config), config, metrics, "tiny")
        app = create_app(service, settings)
        options = uvicorn.Config(app, http="h11", lifespan="off", log_config=None, access_log=False)
        server = DrainingServer(options, service, 1.0)
        await service.start()
        assert await service.settled() == "ready"
        task = asyncio.create_task(server.serve([listener]))
        host, port = listener.getsockname()
        wire = Wire(f"http://{host}:{port}", {}, timeout=60)
        one = Served(service, wire, trouble)
        for sse in (False, True):
            for sampling in samplings:
                for body in caption_bodies(PICTURES, sampling, sse=sse):
                    assert (await one.ask(wire.post("/caption", body))).kind == "200"
        one.counts.clear()
        try:
            yield one
        finally:
            await wire.close()
            server.should_exit = True
            await task
            assert await service.close()


async def survives(server: Served, rate: float, callers: int, each: int, seed: int) -> None:
    """A crowd while steps raise; afterwards everybody gets a caption again."""
    server.trouble.rate = rate
    await server.crowd(callers, each, seed)
    server.trouble.rate = 0.0
    await server.quiet()
    assert sum(server.trouble.raised.values()) > 0
    assert server.service.status == "ready"
    for request in list(server.expected)[: len(PICTURES) * 2]:
        assert (await server.ask(request)).kind == "200"


async def dies(server: Served, place: str, callers: int, each: int, seed: int) -> None:
    """A crowd during which the engine is killed; afterwards everybody is told so."""
    crowd = asyncio.create_task(server.crowd(callers, each, seed))
    await asyncio.sleep(0.1)
    server.trouble.deadly = place
    await crowd
    for again in range(1, 10):
        # Prompts do not move in every crowd.
        if server.trouble.deadly is None:
            break
        await server.crowd(callers, each, seed + 1000 * again)
    await server.quiet()
    assert server.trouble.deadly is None
    assert server.service.status == "failed"
    outcome = await server.ask(next(iter(server.expected)))
    assert outcome.kind == "503"
    assert server.service.metrics.registry.get_sample_value("rediff_engine_up") == 0


def accounted(server: Served) -> Counter[str]:
    """The account, with nothing lost in it."""
    assert not [kind for kind in server.counts if kind.startswith("lost")], server.counts
    return server.counts


async def test_errors_in_steps_and_callers_who_leave(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(checkpoint, monkeypatch, seed=1) as server:
        await survives(server, 0.08, callers=12, each=8, seed=1)
        counts = accounted(server)
        assert counts["200"] > 0
        assert counts["500"] > 0
        assert counts["left"] > 0


async def test_memory_that_runs_out_when_prompts_have_moved(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state under which they moved cannot go on: its requests fail, the next ones do not."""
    async with served(checkpoint, monkeypatch, 4, SAMPLINGS[:4]) as server:
        server.trouble.only, server.trouble.errors = "move", ERRORS[:1]
        await survives(server, 0.5, callers=12, each=8, seed=4)
        counts = accounted(server)
        assert counts["200"] > 0
        assert server.trouble.raised.keys() == {("move", "OutOfMemoryError")}


@pytest.mark.parametrize("place", PLACES)
async def test_a_killed_engine_is_red_and_leaves_nobody_waiting(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    async with served(checkpoint, monkeypatch, 2, SAMPLINGS[:2]) as server:
        await dies(server, place, callers=8, each=5, seed=2)
        assert accounted(server)["503"] > 0


async def test_an_engine_that_dies_between_two_captions_answers_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tell = Ticket.from_engine

    def deadly(ticket: Ticket, event: Event) -> None:
        if isinstance(event, Generation):
            raise SystemExit
        tell(ticket, event)

    monkeypatch.setattr(Ticket, "from_engine", deadly)
    body = caption_bodies(PICTURES[:1], {}, sse=False)[0]
    async with running(max_batch=2) as server, asyncio.timeout(10):
        server.runner.free_running = False
        calls = [Call(server.app, "/caption", body, {}) for _ in range(2)]
        await server.queued(0)
        await server.active(2)
        server.runner.steps_allowed.release(100)
        for call in calls:
            await call.task
            assert call.status == 503
        assert server.service.active == 0
        assert server.service.status == "failed"


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_five_minutes_of_chaos(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, deaths = Counter[str](), Counter[str]()
    raised = Counter[tuple[str, str]]()
    end, seed = time.monotonic() + 300, 100
    while time.monotonic() < end:
        place = PLACES[seed % len(PLACES)]
        async with served(checkpoint, monkeypatch, seed) as server:
            await survives(server, 0.15, callers=24, each=30, seed=seed)
            server.trouble.rate = 0.1
            await dies(server, place, callers=16, each=10, seed=seed + 1)
            counts += accounted(server)
            raised += server.trouble.raised
        deaths[place] += 1
        seed += 1
    logger = logging.getLogger(__name__)
    logger.info("answers %s raised %s deaths %s", dict(counts), dict(raised), dict(deaths))

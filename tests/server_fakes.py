"""A captioner of words instead of tensors, and an app around it."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import httpx
from PIL import Image

from rediff_model.sampling.outputs import Alternative, Change, Generation, StepEvent
from server.api.app import create_app
from server.engine.request import Job, ModelInfo, Outcome, Prepared
from server.metrics import Metrics
from server.service import Service
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

    from fastapi import FastAPI

    from rediff_model.chat_template import Question

MASK, STOP, WRONG = 0, 1, 2
DEFAULT_CAPTION = "two red apples on grass"
CANVAS = 8


def png(width: int = 6, height: int = 4) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


class FakeRunner:
    """Answers a question with its own words, or with a default caption.

    A few questions fail: "boom prepare", "boom start", "boom step". The first word is wrong until
    its block is full, so that every caption of more than one step has one revision.
    """

    def __init__(self) -> None:
        self.info = ModelInfo(CANVAS, MASK, STOP, parameters=7, device="cpu", dtype="float32")
        self.words = ["<mask>", "<stop>", "wrong"]
        self.steps_allowed = threading.Semaphore(0)
        self.free_running = True
        """Steps take no permit from `steps_allowed`."""
        self.prepare_allowed = threading.Event()
        self.prepare_allowed.set()
        self.batches: list[int] = []
        """Jobs in each step so far."""
        self.pictures: list[Image.Image] = []
        self.asked: list[Question | None] = []
        self.starts: list[list[str]] = []
        """The captions of those who joined at a step, in order."""
        self.seeds: list[int | None] = []
        """Those of the jobs, in the order in which they joined."""

    def prepare(self, image: Image.Image, question: Question | None) -> Prepared:
        assert self.prepare_allowed.wait(10)
        self.asked.append(question)
        if isinstance(question, tuple):
            question = (question[-1].text + (question[-1].after or "")).strip()
        if question == "boom prepare":
            raise RuntimeError("a secret path /root/secret")
        self.pictures.append(image)
        return Prepared(question or DEFAULT_CAPTION, image_tokens=4, prompt_tokens=9)

    def encode(self, text: str) -> tuple[int, ...]:
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        return tuple(self.words.index(word) for word in text.split())

    def decode(self, ids: tuple[int, ...]) -> str:
        return "".join(f" {self.words[token]}" for token in ids if token not in (MASK, STOP))

    def open(self) -> FakeBatch:
        return FakeBatch(self)

    def warm_up(self, batch: int) -> None:
        pass

    def row(self, job: Job) -> FakeRow:
        settings = job.settings
        target = (*self.encode(str(job.prompt.rows)), *([STOP] * settings.canvas_length))
        canvas = [*(settings.draft or ()), *([MASK] * settings.canvas_length)]
        return FakeRow(job, target[: settings.canvas_length], canvas[: settings.canvas_length])


@dataclass(slots=True)
class FakeRow:
    """One canvas."""

    job: Job
    target: tuple[int, ...]
    canvas: list[int]
    step: int = 0
    revisions: list[int] = field(default_factory=list)

    def advance(self, wrong: int) -> StepEvent:
        settings, before = self.job.settings, tuple(self.canvas)
        self.step += 1
        self.revisions = self.revisions or [0] * len(before)
        masked = [place for place, token in enumerate(before) if token == MASK]
        for place in masked[: settings.tokens_per_step or 4]:
            self.canvas[place] = self.target[place]
        if MASK in self.canvas[: settings.block]:
            self.canvas[0] = wrong
        elif MASK in self.canvas:
            self.canvas[0] = self.target[0]
        else:
            self.canvas[:] = self.target
        changed = []
        for place, (was, now) in enumerate(zip(before, self.canvas, strict=True)):
            if was != now:
                revised = was != MASK
                self.revisions[place] += revised
                changed.append(Change(place, now, 0.5, "revise" if revised else "reveal", was))
        return StepEvent(
            request=0,
            step=self.step,
            steps=settings.planned_steps,
            masked=self.canvas.count(MASK),
            changed=tuple(changed),
            canvas=tuple(self.canvas),
            done=MASK not in self.canvas,
        )

    def result(self) -> Generation:
        stop = self.canvas.index(STOP) if STOP in self.canvas else len(self.canvas)
        return Generation(
            ids=tuple(self.canvas[:stop]),
            canvas=tuple(self.canvas),
            steps=self.step,
            revisions=sum(self.revisions),
            confidences=tuple(0.5 for _ in self.canvas),
            revision_counts=tuple(self.revisions),
            flips=0,
            step_map=tuple(min(place, self.step) for place in range(len(self.canvas))),
            finish_reason="stop" if stop < len(self.canvas) else "length",
            alternatives=self._alternatives(self.job.settings.alternatives),
        )

    def _alternatives(self, count: int) -> tuple[tuple[Alternative, ...], ...]:
        """Of each token itself and "wrong", at most."""
        return tuple(
            (Alternative(token, 0.5), Alternative(WRONG, 0.25))[:count]
            for token in self.canvas
            if count
        )


class FakeBatch:
    """Rows that advance one step at a time, when the runner lets them."""

    def __init__(self, runner: FakeRunner) -> None:
        self._runner = runner
        self._rows: dict[int, FakeRow] = {}

    def join(self, jobs: Mapping[int, Job]) -> None:
        questions = [str(job.prompt.rows) for job in jobs.values()]
        if "boom start" in questions:
            raise RuntimeError("cannot start")
        self._runner.starts.append(questions)
        self._runner.seeds += [job.settings.seed for job in jobs.values()]
        self._rows |= {number: self._runner.row(job) for number, job in jobs.items()}

    def step(self) -> Outcome:
        if not self._runner.free_running:
            assert self._runner.steps_allowed.acquire(timeout=10)
        self._runner.batches.append(len(self._rows))
        steps, captions = [], {}
        for number, row in list(self._rows.items()):
            if row.job.prompt.rows == "boom step":
                raise RuntimeError("step failed")
            event = row.advance(self._runner.words.index("wrong"))
            if row.job.wants_steps:
                steps.append((number, event))
            if event.done:
                captions[number] = row.result()
                del self._rows[number]
        return Outcome(tuple(steps), captions)

    def drop(self, numbers: Collection[int]) -> None:
        for number in numbers:
            self._rows.pop(number, None)


@dataclass(frozen=True, slots=True)
class Running:
    """A started app."""

    runner: FakeRunner
    service: Service
    app: FastAPI
    client: httpx.AsyncClient

    async def active(self, count: int) -> None:
        """Wait until this many requests are admitted and not ended."""
        await _until(lambda: self.service.active == count)

    async def queued(self, count: int) -> None:
        """Wait until this many requests wait for a batch."""
        await _until(lambda: self.service.engine.queued == count)

    async def stepping(self) -> None:
        """Wait until a batch runs."""
        await _until(lambda: self.service.engine.running > 0)

    async def stepped(self, count: int) -> None:
        """Wait until this many steps are done."""
        await _until(lambda: len(self.runner.batches) >= count)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is watched lives in another thread
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(runner: FakeRunner | None = None, **settings: Any) -> AsyncIterator[Running]:
    """An app around a fake runner, ready for requests."""
    runner = runner or FakeRunner()
    chosen = Settings.read({"model": "fake", **settings})
    service = Service(lambda: runner, chosen.engine(), Metrics(), chosen.name)
    app = create_app(service, chosen)
    await service.start()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert await service.settled() == "ready"
        try:
            yield Running(runner, service, app, client)
        finally:
            runner.free_running = True
            runner.prepare_allowed.set()
            runner.steps_allowed.release(1000)
            await service.close()


class Call:
    """One request to an app by hand: its events as they come, and a way to leave."""

    def __init__(self, app: FastAPI, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        self._left = asyncio.Event()
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]
        self._chunks: asyncio.Queue[str | None] = asyncio.Queue()
        self._pending = ""
        self.status = 0
        self.headers: dict[str, str] = {}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "scheme": "http",
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
            "server": ("test", 80),
            "client": ("test", 1),
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop(0)
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            self._chunks.put_nowait(message.get("body", b"").decode())
            if not message.get("more_body"):
                self._chunks.put_nowait(None)

    async def block(self) -> str | None:
        """The next block of a stream, up to an empty line; None at its end."""
        while "\n\n" not in self._pending:
            async with asyncio.timeout(10):
                chunk = await self._chunks.get()
            if chunk is None:
                return None
            self._pending += chunk
        block, _, self._pending = self._pending.partition("\n\n")
        return block

    async def event(self) -> tuple[str, Any] | None:
        """The next event's name and data; None at the end."""
        block = await self.block()
        if block is None:
            return None
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        return fields.get("event", ""), json.loads(fields["data"])

    async def leave(self) -> None:
        """Close the connection, and wait until the app has noticed."""
        self._left.set()
        async with asyncio.timeout(10):
            await self.task

"""Between the event loop and the engine: admission, decoding, deadlines, draining."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from rediff_model.sampling.params import SettingsError
from server.engine.engine import Engine
from server.engine.request import Job, ModelInfo, Prepared
from server.engine.taught import text_of
from server.engine.templates import fitted
from server.errors import (
    BadSetting,
    Draining,
    EngineDown,
    NotReady,
    QueueFull,
    RequestFailed,
    ServeError,
)
from server.request_handle import RETRY_AFTER, Caption, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from rediff_model.chat_template import Question
    from rediff_model.sampling.params import SamplerSettings
    from rediff_model.sampling.template_text import TemplateText
    from server.engine.config import EngineConfig
    from server.engine.engine import State
    from server.engine.request import Runner
    from server.metrics import Metrics

Status = Literal["loading", "ready", "draining", "failed"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """What a client asked for. Made by the API."""

    image: Callable[[], Image.Image]
    """Decodes the picture; called in a worker thread."""
    settings: SamplerSettings
    prompt: Question | None = None
    """The question; None is the default one."""
    warnings: tuple[str, ...] = ()
    """How the request differs from what the client asked."""
    draft: str | None = None
    """A caption to revise."""
    template: TemplateText | None = None
    """Fixed text with holes to be filled."""
    wants_steps: bool = False
    priority: int = 0
    timeout: float | None = None


class Service:
    """Admits requests to the engine, up to `max_batch + max_queue` at a time."""

    def __init__(
        self,
        load: Callable[[], Runner],
        config: EngineConfig,
        metrics: Metrics,
        model_name: str,
        on_load_failed: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_load_failed` is called in the event loop when there will never be a model."""
        self.config = config
        self.metrics = metrics
        self.model_name = model_name
        self.engine = Engine(load, config, metrics, self._engine_changed)
        self._on_load_failed = on_load_failed
        self._threads = ThreadPoolExecutor(config.prepare_threads, "prepare")
        self._tickets: set[Ticket] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._settled = asyncio.Event()
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        metrics.running.set_function(lambda: self.engine.running)
        metrics.waiting.set_function(lambda: max(0, self.active - self.engine.running))

    async def start(self) -> None:
        """Start the engine; it loads and warms up in its own thread."""
        self._loop = asyncio.get_running_loop()
        self.engine.start()

    async def settled(self) -> Status:
        """Wait until the engine is ready or has failed."""
        await self._settled.wait()
        return self.status

    async def drain(self, grace: float) -> None:
        """Refuse new work, let admitted requests end for `grace` seconds, then fail the rest."""
        self._draining = True
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            self._fail_all()

    async def close(self) -> bool:
        """Stop the engine and the threads; what still runs fails. False if one did not stop."""
        self._draining = True
        self._fail_all()
        stopped = await asyncio.to_thread(self.engine.close)
        self._threads.shutdown(wait=False, cancel_futures=True)
        return stopped

    @property
    def status(self) -> Status:
        state = self.engine.state
        if self._draining or state == "closed":
            return "draining"
        return state

    @property
    def load_error(self) -> BaseException | None:
        """Why there will never be a model."""
        return None if self.engine.runner is not None else self.engine.error

    @property
    def active(self) -> int:
        """Requests admitted and not ended."""
        return len(self._tickets)

    def check_ready(self) -> None:
        """Raise NotReady, with the reason, unless captions can be had."""
        if self.status == "draining":
            raise Draining("the server is stopping", retry_after=RETRY_AFTER)
        if self.status == "failed":
            raise EngineDown("the engine is down", retry_after=RETRY_AFTER)
        if self.status == "loading":
            raise NotReady("the model is loading", retry_after=RETRY_AFTER)

    @property
    def model(self) -> ModelInfo:
        """What is known of the model.

        Raises:
            NotReady: it is not loaded.
        """
        return self._loaded().info

    def decode(self, ids: tuple[int, ...]) -> str:
        """The text of token ids; also while requests end that were admitted before a stop."""
        return self._loaded().decode(ids)

    async def submit(self, request: CaptionRequest) -> Ticket:
        """Admit a request, prepare its prompt and queue it.

        Raises:
            ServeError: refused (not ready, queue full), or failed while it was prepared.
            ImageError: raised by the request's own `image`.
        """
        runner = self._admit()
        request = self._encoded(request, runner)
        ticket = Ticket(self._free, request.timeout or self.config.request_timeout)
        self._tickets.add(ticket)
        self._idle.clear()
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, self._prepare, runner, request
        )
        prompt = await ticket.prepare(work)
        job = Job(
            prompt,
            request.settings,
            ticket.from_engine,
            wants_steps=request.wants_steps,
            priority=request.priority,
            deadline=ticket.deadline,
            arrived_at=ticket.admitted_at,
        )
        ticket.enqueue(self.engine, job)
        return ticket

    def _fail_all(self) -> None:
        for ticket in tuple(self._tickets):
            ticket.fail(Draining("the server stopped before the caption was finished"))

    def _free(self, ticket: Ticket, outcome: str, caption: Caption | None) -> None:
        """Free a ticket's place. Called by the ticket, once."""
        self._tickets.discard(ticket)
        self.metrics.requests.labels(outcome=outcome).inc()
        if caption is not None:
            self.metrics.latency.observe(caption.timing.total)
            self.metrics.request_steps.observe(caption.generation.steps)
            self.metrics.committed.inc(len(caption.generation.ids))
            self.metrics.revised.inc(caption.generation.revisions)
        if not self._tickets:
            self._idle.set()

    def _admit(self) -> Runner:
        try:
            self.check_ready()
            limit = self.config.max_batch + self.config.max_queue
            if self.active >= limit:
                raise QueueFull(f"{limit} requests are waiting", retry_after=self._wait_estimate())
        except ServeError as error:
            self.metrics.rejections.labels(reason=error.reason).inc()
            raise
        return self._loaded()

    def _loaded(self) -> Runner:
        runner = self.engine.runner
        if runner is None:
            self.check_ready()
            raise NotReady("the model is loading", retry_after=RETRY_AFTER)
        return runner

    def _encoded(self, request: CaptionRequest, runner: Runner) -> CaptionRequest:
        """The request with its draft as ids, if its texts are not too long in tokens."""
        limit = self.config.max_prompt_tokens
        # A character may be four tokens, and a prompt's cost grows with their square.
        if (count := len(runner.encode(text_of(request.prompt)))) > limit:
            raise BadSetting(f"prompt has {count} tokens, the limit is {limit}", param="prompt")
        try:
            if request.template is not None:
                settings = fitted(
                    request.settings, request.template, runner, self.config.max_canvas
                )
                return replace(request, settings=settings)
            if request.draft is not None:
                draft = runner.encode(request.draft)
                return replace(request, settings=replace(request.settings, draft=draft))
        except SettingsError as error:
            param = "draft" if request.template is None else "template"
            raise BadSetting(str(error), param=param) from None
        return request

    def _prepare(self, runner: Runner, request: CaptionRequest) -> tuple[Prepared, float]:
        """Runs in a worker thread, so that at most a few decoded pictures exist at a time."""
        try:
            began = time.monotonic()
            image = request.image()
            decoded = time.monotonic()
            prompt = runner.prepare(image, request.prompt)
        except ServeError:
            raise
        except Exception:
            logger.exception("a request could not be prepared")
            raise RequestFailed("the prompt could not be computed") from None
        vision = time.monotonic() - decoded
        self.metrics.decode_time.observe(decoded - began)
        self.metrics.vision_time.observe(vision)
        self.metrics.vision_queries.inc()
        self.metrics.vision_hits.inc(prompt.cached)
        return replace(prompt, vision_seconds=vision), decoded - began

    def _wait_estimate(self) -> int:
        turns = self.active / self.config.max_batch
        return min(60, max(1, math.ceil(turns * self.engine.request_seconds)))

    def _engine_changed(self, state: State) -> None:
        """Runs in the engine's thread."""
        loop = self._loop
        assert loop is not None
        try:
            loop.call_soon_threadsafe(self._notice, state)
        except RuntimeError:
            return

    def _notice(self, state: State) -> None:
        if state == "failed":
            if not self._settled.is_set():
                self._on_load_failed()
            # Whoever the engine held between two hands when it died was not told by it.
            for ticket in tuple(self._tickets):
                ticket.fail(EngineDown("the engine stopped", retry_after=RETRY_AFTER))
        self._settled.set()

"""The two sides of the engine's benchmark: a running engine with its caller, and the reference.

Shape suffixes: P prompt rows, D hidden size.
"""

from __future__ import annotations

import queue
import time
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from rediff_model.model import Captioner
from rediff_model.sampling import reference
from rediff_model.sampling.outputs import Generation
from server.engine.config import EngineConfig
from server.engine.engine import Engine
from server.engine.model_runner import SamplerRunner
from server.engine.request import Failure, Job, Prepared
from server.metrics import Metrics
from training.stickers.atlas import Atlas, default_names
from training.stickers.render import render
from training.stickers.sample import sample_scene
from training.stickers.score import score

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from rediff_model.sampling.params import SamplerSettings
    from server.engine.request import Event, StepTrace
    from training.stickers.graph import Scene


@dataclass(frozen=True, slots=True)
class Work:
    """What both sides are given."""

    captioner: Captioner
    scenes: list[Scene]
    prompts: list[Tensor]
    """[P, D] each."""
    vision_seconds: float
    """Tower and projector for one picture."""

    @classmethod
    def load(cls, folder: Path, count: int) -> Work:
        captioner, atlas = Captioner.load(folder), Atlas.load()
        scenes = [sample_scene(seed, atlas, split="test") for seed in range(count)]
        pictures = [render(scene, atlas) for scene in scenes]
        began = time.perf_counter()
        features = [captioner.image_features([picture])[0] for picture in pictures]
        seconds = (time.perf_counter() - began) / count
        return cls(captioner, scenes, [captioner.prompt(one) for one in features], seconds)

    def reference(self, place: int, settings: SamplerSettings) -> Generation:
        """The reference's caption of one prompt."""
        ids = self.captioner.token_ids
        return reference.generate(self.captioner.model, self.prompts[place], settings, ids)

    def coverage(self, captions: Sequence[Generation]) -> float:
        """Share of the facts of the scenes that captions state."""
        names = default_names()
        return mean(
            score(scene, self.captioner.decode(caption.ids), names).coverage
            for scene, caption in zip(self.scenes, captions, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long something took."""

    wall: float
    cpu: float
    """Of the process, all threads together."""

    @classmethod
    def now(cls) -> Seconds:
        return cls(time.perf_counter(), time.process_time())

    def since(self) -> Seconds:
        """From this moment until now."""
        now = Seconds.now()
        return Seconds(now.wall - self.wall, now.cpu - self.cpu)

    def per(self, count: int) -> Seconds:
        return Seconds(self.wall / count, self.cpu / count)


@dataclass(eq=False, slots=True)
class Client:
    """Sends prompts to a running engine and waits for all captions."""

    engine: Engine
    work: Work
    traces: list[StepTrace]

    def run(
        self, settings: SamplerSettings, places: Sequence[int]
    ) -> tuple[list[Generation], Seconds]:
        """Captions in order, and the time a caption from the first request to the last one."""
        done: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        began = Seconds.now()
        for place in places:
            self.engine.submit(self._job(settings, place, done))
        captions: dict[int, Generation] = {}
        while len(captions) < len(places):
            place, event = done.get(timeout=600)
            if isinstance(event, Failure):
                raise RuntimeError(f"request {place} failed: {event.kind}")
            if isinstance(event, Generation):
                captions[place] = event
        seconds = began.since().per(len(places))
        return [captions[place] for place in places], seconds

    def _job(
        self,
        settings: SamplerSettings,
        place: int,
        done: queue.SimpleQueue[tuple[int, Event]],
    ) -> Job:
        rows_PD = self.work.prompts[place]
        prompt = Prepared(rows_PD, 0, len(rows_PD))
        return Job(prompt, settings, lambda event: done.put((place, event)))


@contextmanager
def engine_for(work: Work, batch: int, *, compiled: bool = False) -> Iterator[Client]:
    """A running engine on a loaded model."""
    states: queue.SimpleQueue[str] = queue.SimpleQueue()
    traces: list[StepTrace] = []
    config = EngineConfig(
        "embedded", max_batch=batch, max_queue=len(work.prompts), compile=compiled
    )
    engine = Engine(
        lambda: SamplerRunner(work.captioner, config), config, Metrics(), states.put, traces.append
    )
    engine.start()
    if states.get(timeout=600) != "ready":
        raise RuntimeError(f"the engine does not start: {engine.error}")
    try:
        yield Client(engine, work, traces)
    finally:
        engine.close()

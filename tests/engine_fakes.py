"""Jobs without a model, and a runner that counts instead of computing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rediff_model.sampling.outputs import Generation, StepEvent
from rediff_model.sampling.params import SamplerSettings
from server.engine.request import Event, Job, ModelInfo, Outcome, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from PIL import Image

    from rediff_model.chat_template import Question

INFO = ModelInfo(8, 0, 1, parameters=7, device="cpu", dtype="float32")


@dataclass(eq=False)
class Inbox:
    """What a job was told."""

    events: list[Event] = field(default_factory=list)

    @property
    def last(self) -> Event:
        return self.events[-1]


def job(
    prompt_rows: int = 4,
    canvas: int = 8,
    *,
    steps: int = 1,
    priority: int = 0,
    deadline: float | None = None,
    wants_steps: bool = False,
    cfg_scale: float = 0.0,
    emit: Callable[[Event], None] = lambda event: None,
) -> Job:
    """A job of `prompt_rows` + `canvas` rows that ends after `steps` steps."""
    prompt = Prepared("", image_tokens=0, prompt_tokens=prompt_rows)
    settings = SamplerSettings(canvas_length=canvas, steps=steps, cfg_scale=cfg_scale)
    return Job(prompt, settings, emit, wants_steps, priority, deadline)


class CountingRunner:
    """Ends each request after as many steps as it asked for; what comes `before_` may raise."""

    def __init__(self) -> None:
        self.info = INFO
        self.steps: list[tuple[int, ...]] = []
        """Requests in each step so far."""
        self.joined: list[tuple[int, ...]] = []
        self.before_join: Callable[[Mapping[int, Job]], None] = lambda jobs: None
        self.before_step: Callable[[Mapping[int, Job]], None] = lambda jobs: None
        self.before_drop: Callable[[Mapping[int, Job]], None] = lambda jobs: None
        self.broken: set[int] = set()
        self.warmed: list[int] = []
        """Sizes of the batches that were run by themselves."""
        self.before_warm_up: Callable[[], None] = lambda: None
        self.opened: list[CountingBatch] = []

    def prepare(self, image: Image.Image, question: Question | None) -> Prepared:
        return Prepared("", image_tokens=0, prompt_tokens=4)

    def encode(self, text: str) -> tuple[int, ...]:
        return ()

    def decode(self, ids: tuple[int, ...]) -> str:
        return ""

    def open(self) -> CountingBatch:
        self.opened.append(CountingBatch(self))
        return self.opened[-1]

    def warm_up(self, batch: int) -> None:
        self.before_warm_up()
        self.warmed.append(batch)


class CountingBatch:
    """Steps of requests."""

    def __init__(self, runner: CountingRunner) -> None:
        self._runner = runner
        self.jobs: dict[int, Job] = {}
        self._steps: dict[int, int] = {}

    def join(self, jobs: Mapping[int, Job]) -> None:
        self._runner.before_join(jobs)
        self._runner.joined.append(tuple(jobs))
        assert not self.jobs.keys() & jobs.keys()
        self.jobs.update(jobs)
        self._steps.update(dict.fromkeys(jobs, 0))

    def step(self) -> Outcome:
        self._runner.before_step(self.jobs)
        self._runner.steps.append(tuple(self.jobs))
        steps, captions = [], {}
        for number, one in self.jobs.items():
            if number in self._runner.broken:
                continue
            self._steps[number] += 1
            # More: a step that raised while the finished left has counted already.
            done = self._steps[number] >= one.settings.planned_steps
            if one.wants_steps:
                steps.append((number, self._event(number, done=done)))
            if done:
                captions[number] = Generation(
                    (), (), self._steps[number], 0, (), (), 0, (), "length"
                )
        rows = sum(one.settings.canvas_length for one in self.jobs.values())
        broken = frozenset(self._runner.broken & self.jobs.keys())
        self.drop(captions)
        return Outcome(tuple(steps), captions, broken, canvas_rows=rows)

    def drop(self, numbers: Collection[int]) -> None:
        leaving = {number: self.jobs[number] for number in numbers if number in self.jobs}
        if leaving:
            self._runner.before_drop(leaving)
        for number in leaving:
            del self.jobs[number], self._steps[number]

    def _event(self, number: int, *, done: bool) -> StepEvent:
        planned = self.jobs[number].settings.planned_steps
        return StepEvent(number, self._steps[number], planned, 0, (), (), done)

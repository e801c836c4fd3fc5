"""What passes between service and engine: a job in, events out. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from rediff_model.generation import Generation, StepEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from rediff_model.settings import SamplerSettings


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What callers must know of the loaded model."""

    canvas_length: int
    """Tokens of a caption by default."""
    mask_token_id: int
    stop_token_id: int
    parameters: int
    device: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt ready to run. Filled by the runner, opaque to everybody else."""

    rows: object
    """The embedded prompt, image rows included."""
    image_tokens: int
    prompt_tokens: int
    """All rows of the prompt, image rows included."""
    vision_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of a job that has no caption."""

    kind: Literal["request", "step", "engine"]
    """Whose fault: this request's alone, the step it shared, or the whole engine's."""


Event = StepEvent | Generation | Failure


@dataclass(eq=False, slots=True)
class Job:
    """One request inside the engine. Made by the service; the engine sets the times."""

    prompt: Prepared
    settings: SamplerSettings
    emit: Callable[[Event], None]
    """Called in the engine's thread: any number of steps, then one caption or failure."""
    wants_steps: bool = False
    priority: int = 0
    """Lower goes first."""
    cancelled: bool = False
    """Set from any thread; the job is gone by the next step and emits nothing more."""
    submitted_at: float = field(default=0.0)
    started_at: float = field(default=0.0)


class Batch(Protocol):
    """Jobs that step together; a job is known by its index in the list it was started from."""

    def step(self) -> list[tuple[int, StepEvent | Generation]]:
        """Advance every job that is left by one step, and tell what happened."""
        ...

    def drop(self, indices: set[int]) -> None:
        """Forget these jobs before the next step."""
        ...


class Runner(Protocol):
    """The computing side: a loaded model."""

    info: ModelInfo

    def prepare(self, image: Image.Image, question: str | None) -> Prepared:
        """Encode a picture and a question (None: the default one). Safe from any thread."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text. Safe from any thread."""
        ...

    def decode(self, ids: tuple[int, ...]) -> str:
        """The text of token ids. Safe from any thread."""
        ...

    def start(self, jobs: list[Job]) -> Batch:
        """Begin a batch; raises when one of the jobs cannot be run."""
        ...

    def warm_up(self, batch: int) -> None:
        """Run a batch of this size once, so that the first request is not slower."""
        ...

"""What passes between service and engine: a job in, events out. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from rediff_model.config import Preferences
from rediff_model.sampling.outputs import Generation, StepEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from PIL import Image

    from rediff_model.chat_template import Question
    from rediff_model.sampling.params import SamplerSettings


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
    row_bytes: int = 1
    """Keys and values of one prompt or canvas row over all layers."""
    request_rows: int = 0
    """Prompt and canvas rows of a request that leaves everything at its default."""
    preferences: Preferences = field(default_factory=Preferences)
    """Decoding by default, see `ModelConfig.preferences`."""
    taught_prompts: tuple[str, ...] = ()
    """The only questions it was trained on; empty: it takes any text."""
    single_question: bool = False
    """It was trained on single questions, not on conversations of several turns."""
    domain: str = ""
    """Which pictures it was trained for, in words for users; may be empty."""
    spaced: bool = False
    """Whether tokens begin with the space before their word."""
    free_bytes: int | None = None
    """Memory that keys and values may take; None when it is not known."""
    kernels: str = "torch"
    """What runs selection and refining: `triton` or `torch`."""
    attention: str = "buckets"
    """`packed` (`torch.nn.attention.varlen`), `sequential` on a CPU, or `buckets` of like
    lengths."""
    compiled: bool = False
    """Whether what lies between the attentions is compiled."""
    cuda_graphs: bool = False
    """Whether steps are recorded and replayed."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt ready to run. Filled by the runner, opaque to everybody else."""

    rows: object
    """The embedded prompt, image rows included."""
    image_tokens: int
    prompt_tokens: int
    """All rows of the prompt, image rows included."""
    vision_seconds: float = 0.0
    cached: bool = False
    """Whether the picture's features were there already."""


FailureKind = Literal[
    "request", "step", "numbers", "memory", "too_large", "queue", "deadline", "engine"
]


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of a job that has no caption."""

    kind: FailureKind
    """`request`: this request could not be started or told; `step`: the step it shared raised;
    `numbers`: the model gave it NaN; `memory`: it did not fit beside nobody, or had begun to
    stream; `too_large`: it can never fit; `queue`: too many wait; `deadline`: it is too late;
    `engine`: there is no engine any more."""
    message: str = ""
    """May be shown to anybody."""


Event = StepEvent | Generation | Failure


@dataclass(eq=False, slots=True)
class Job:
    """One request inside the engine. Made by the service; the scheduler gives it its number and
    urgency, the engine sets the times."""

    prompt: Prepared
    settings: SamplerSettings
    emit: Callable[[Event], None]
    """Called in the engine's thread: any number of steps, then one caption or failure."""
    wants_steps: bool = False
    priority: int = 0
    """Lower goes first."""
    deadline: float | None = None
    """On `time.monotonic`; the job fails when it is not done by then."""
    arrived_at: float | None = None
    """When the request came in, before its picture was read; None: when it was submitted."""
    cancelled: bool = False
    """Set by `Engine.cancel`; the job is gone by the next step and emits nothing more."""
    number: int = -1
    urgency: float = 0.0
    submitted_at: float = 0.0
    started_at: float = 0.0
    stepped: bool = False
    """Whether a step has been computed for it."""

    @property
    def prompt_rows(self) -> int:
        """Prompt rows that joining computes, with those of the unconditional twin."""
        return self.prompt.prompt_tokens * self._sequences

    @property
    def rows(self) -> int:
        """Prompt and canvas rows that it holds while it runs."""
        canvas = self.settings.canvas_length + len(self.settings.suffix)
        return self.prompt_rows + canvas * self._sequences

    @property
    def _sequences(self) -> int:
        return 1 + (self.settings.cfg_scale > 0)


class OutOfMemory(MemoryError):
    """The device has no memory left; nothing has changed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step of a batch did. Filled by the runner, by the requests' numbers."""

    steps: tuple[tuple[int, StepEvent], ...] = ()
    """Of requests that want them."""
    captions: Mapping[int, Generation] = field(default_factory=dict)
    """Of requests that ended, also before their first step when they needed none."""
    broken: frozenset[int] = frozenset()
    """Requests whose numbers are not finite: no step and no caption of theirs is told, and the
    caller drops them."""
    refreshed: frozenset[int] = frozenset()
    """Requests whose prompt was computed again."""
    canvas_rows: int = 0
    revealed: int = 0
    revised: int = 0


@dataclass(frozen=True, slots=True)
class StepTrace:
    """Who did what in one step, for those who draw or count it."""

    began: float
    """On `time.monotonic`."""
    seconds: float
    computing: float
    """The part of `seconds` that the runner took."""
    waiting: int
    joined: tuple[int, ...]
    running: tuple[int, ...]
    """Everybody in the step, those who joined and those who left with it included."""
    refreshed: frozenset[int]


class Batch(Protocol):
    """Requests that step together, each at a step of its own, known by the caller's numbers.

    What raises has changed nothing.
    """

    def join(self, jobs: Mapping[int, Job]) -> None:
        """Take in requests; raises when one of them cannot be run, OutOfMemory if none can."""
        ...

    def step(self) -> Outcome:
        """Advance everybody by one step."""
        ...

    def drop(self, numbers: Collection[int]) -> None:
        """Forget these requests; numbers that are not here are ignored."""
        ...


class Opens(Protocol):
    """What the loop needs of a runner."""

    def open(self) -> Batch:
        """An empty batch."""
        ...


class Runner(Opens, Protocol):
    """The computing side: a loaded model."""

    info: ModelInfo

    def prepare(self, image: Image.Image, question: Question | None) -> Prepared:
        """Encode a picture and a question (None: the default one). Safe from any thread."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text. Safe from any thread."""
        ...

    def decode(self, ids: tuple[int, ...]) -> str:
        """The text of token ids. Safe from any thread."""
        ...

    def warm_up(self, batch: int) -> None:
        """Run a batch of this size once, so that the first request is not slower."""
        ...

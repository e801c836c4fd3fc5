"""Captions of files without a server: the same image door, runner and sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import ValidationError

from server.api.schemas import SamplingOptions
from server.engine.request import Job
from server.engine.taught import suited, text_of
from server.errors import BadBody, ServeError
from server.images.decode import ImageError, ImageLimits, decode_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rediff_model.chat_template import Question
    from rediff_model.sampling.outputs import Generation
    from rediff_model.sampling.params import SamplerSettings
    from server.engine.request import Prepared, Runner
    from server.settings import Settings


class CannotCaption(Exception):
    """The sampler's options or the model cannot be used; the message is one line."""


class Fitted(NamedTuple):
    """An order as a model takes it."""

    settings: SamplerSettings
    question: Question | None = None
    """None is the default one."""
    warnings: tuple[str, ...] = ()
    """How it differs from what was asked."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of every picture, checked as far as it can be without the model."""

    prompt: str | None
    """The question; None is the default one."""
    options: SamplingOptions
    max_new_tokens: int | None
    max_canvas: int
    max_prompt_tokens: int

    @classmethod
    def read(cls, settings: Settings, given: Mapping[str, Any], prompt: str | None) -> Self:
        """The order of a command line; `given` may hold other options than those of the sampler.

        Raises:
            CannotCaption: an option cannot be used.
        """
        if prompt is not None and len(prompt) > settings.max_prompt_characters:
            raise CannotCaption(
                f"prompt has {len(prompt)} characters, the limit is "
                f"{settings.max_prompt_characters}"
            )
        most = given.get("max_new_tokens")
        if most is not None and given.get("canvas_length") is not None:
            raise CannotCaption("--max-new-tokens and --canvas-length are the same: give one")
        names = given.keys() & SamplingOptions.model_fields
        try:
            options = SamplingOptions.model_validate({name: given[name] for name in names})
            # So that a typing error does not cost the time of loading the model.
            options.resolve(settings.max_canvas, settings.max_canvas)
        except ValidationError as error:
            # Unlike a request's, what was typed here may be repeated.
            got = error.errors(include_url=False, include_context=False)[0]["input"]
            raise CannotCaption(f"{BadBody.of(error).message}, got {got!r}") from None
        except ServeError as error:
            raise CannotCaption(str(error)) from None
        question = prompt if prompt and prompt.strip() else None
        return cls(question, options, most, settings.max_canvas, settings.max_prompt_tokens)

    def fit(self, runner: Runner) -> Fitted:
        """The order for a model.

        Raises:
            CannotCaption: they do not fit it, or the prompt has too many tokens.
        """
        question, warnings = suited(runner.info, self.prompt)
        count = len(runner.encode(text_of(question)))
        if count > self.max_prompt_tokens:
            raise CannotCaption(f"prompt has {count} tokens, the limit is {self.max_prompt_tokens}")
        canvas = runner.info.canvas_length
        if self.max_new_tokens is not None:
            # As of a chat: what a model has no canvas for it does not write.
            canvas = min(canvas, self.max_new_tokens)
        try:
            settings = self.options.resolve(canvas, self.max_canvas, runner.info.preferences.preset)
        except ServeError as error:
            raise CannotCaption(str(error)) from None
        return Fitted(settings.preferring(runner.info.preferences), question, warnings)


@dataclass(frozen=True, slots=True)
class FileCaption:
    """What became of one file: a caption, or the reason why there is none."""

    path: Path
    text: str = ""
    generation: Generation | None = None
    error: str | None = None

    def row(self) -> dict[str, Any]:
        """The same for JSON."""
        done = self.generation
        if done is None:
            return {"file": str(self.path), "error": self.error}
        return {
            "file": str(self.path),
            "caption": self.text,
            "finish_reason": done.finish_reason,
            "steps": done.steps,
            "revisions": done.revisions,
        }


@dataclass(frozen=True, slots=True)
class Captions:
    """Captions files in batches."""

    runner: Runner
    fitted: Fitted
    limits: ImageLimits
    max_batch: int

    @classmethod
    def open(cls, load: Callable[[], Runner], settings: Settings, order: Order) -> Self:
        """Load the model.

        Raises:
            CannotCaption: it cannot be used, or the order does not fit it.
        """
        try:
            runner = load()
        except (ValueError, OSError) as error:
            raise CannotCaption(str(error)) from None
        limits = image_limits(settings)
        return cls(runner, order.fit(runner), limits, settings.max_batch)

    def of(self, paths: Sequence[Path]) -> Iterator[FileCaption]:
        """One result a file, in order; a file that cannot be read does not stop the others."""
        for first in range(0, len(paths), self.max_batch):
            part = paths[first : first + self.max_batch]
            prepared = [self._prepare(path) for path in part]
            captions = iter(self._run([one for one in prepared if not isinstance(one, str)]))
            for path, one in zip(part, prepared, strict=True):
                if isinstance(one, str):
                    yield FileCaption(path, error=one)
                elif (done := next(captions)) is None:
                    yield FileCaption(path, error="the model gave numbers that are not finite")
                else:
                    yield FileCaption(path, self.runner.decode(done.ids).strip(), done)

    def _prepare(self, path: Path) -> Prepared | str:
        """The prompt of a picture, or why there is none."""
        try:
            with path.open("rb") as stream:
                # Devices and pipes have no size to ask for, and may never end.
                content = stream.read(self.limits.max_bytes + 1)
            if len(content) > self.limits.max_bytes:
                return f"the file is above the limit of {self.limits.max_bytes} bytes"
            image = decode_image(content, self.limits)
        except ImageError as error:
            return error.message
        except OSError as error:
            return error.strerror or type(error).__name__
        return self.runner.prepare(image, self.fitted.question)

    def _run(self, prompts: list[Prepared]) -> list[Generation | None]:
        """Captions; None where the model gives numbers that are not finite."""
        if not prompts:
            return []
        batch = self.runner.open()
        batch.join(
            {
                number: Job(prompt, self.fitted.settings, lambda _: None)
                for number, prompt in enumerate(prompts)
            }
        )
        captions: dict[int, Generation] = {}
        broken: set[int] = set()
        while len(captions) + len(broken) < len(prompts):
            outcome = batch.step()
            captions |= outcome.captions
            broken |= outcome.broken
            batch.drop(outcome.broken)
        return [captions.get(number) for number in range(len(prompts))]


def image_limits(settings: Settings) -> ImageLimits:
    """What a picture may be at most."""
    return ImageLimits(settings.max_image_bytes, settings.max_image_pixels, settings.max_image_side)

"""What is asked of every picture, by the options of the command line or of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import ValidationError

from server.api.schemas import SamplingOptions
from server.bulk.item import BulkError
from server.engine.taught import suited, text_of
from server.errors import BadBody, ServeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rediff_model.chat_template import Question
    from rediff_model.sampling.params import SamplerSettings
    from server.engine.request import Runner
    from server.settings import Settings


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
            BulkError: an option cannot be used.
        """
        if prompt is not None and len(prompt) > settings.max_prompt_characters:
            raise BulkError(
                f"prompt has {len(prompt)} characters, the limit is "
                f"{settings.max_prompt_characters}"
            )
        most = given.get("max_new_tokens")
        if most is not None and given.get("canvas_length") is not None:
            raise BulkError("--max-new-tokens and --canvas-length are the same: give one")
        names = given.keys() & SamplingOptions.model_fields
        try:
            options = SamplingOptions.model_validate({name: given[name] for name in names})
            # So that a typing error does not cost the time of loading the model.
            options.resolve(settings.max_canvas, settings.max_canvas)
        except ValidationError as error:
            # Unlike a request's, what was typed here may be repeated.
            got = error.errors(include_url=False, include_context=False)[0]["input"]
            raise BulkError(f"{BadBody.of(error).message}, got {got!r}") from None
        except ServeError as error:
            raise BulkError(str(error)) from None
        question = prompt if prompt and prompt.strip() else None
        return cls(question, options, most, settings.max_canvas, settings.max_prompt_tokens)

    def fit(self, runner: Runner) -> Fitted:
        """The order for a model.

        Raises:
            BulkError: they do not fit it, or the prompt has too many tokens.
        """
        question, warnings = suited(runner.info, self.prompt)
        count = len(runner.encode(text_of(question)))
        if count > self.max_prompt_tokens:
            raise BulkError(f"prompt has {count} tokens, the limit is {self.max_prompt_tokens}")
        canvas = runner.info.canvas_length
        if self.max_new_tokens is not None:
            # As of a chat: what a model has no canvas for it does not write.
            canvas = min(canvas, self.max_new_tokens)
        try:
            settings = self.options.resolve(canvas, self.max_canvas, runner.info.preferences.preset)
        except ServeError as error:
            raise BulkError(str(error)) from None
        return Fitted(settings.preferring(runner.info.preferences), question, warnings)

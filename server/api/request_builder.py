"""From what a client said, in whatever dialect, to a request that the service takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rediff_model.sampling.template_text import TemplateError, parse
from server.engine.taught import suited, text_of
from server.errors import BadSetting
from server.images.decode import decode_image
from server.service import CaptionRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from rediff_model.chat_template import Question
    from server.api.schemas import SamplingOptions
    from server.images.decode import ImageLimits
    from server.images.fetch import Fetch
    from server.service import Service


class Orders:
    """Checks options against the loaded model and the server's limits."""

    def __init__(
        self, service: Service, limits: ImageLimits, fetch: Fetch, max_prompt_characters: int
    ) -> None:
        self._service = service
        self._limits = limits
        self._fetch = fetch
        self._max_prompt_characters = max_prompt_characters

    def make(
        self,
        picture: Callable[[Fetch], bytes],
        sampling: SamplingOptions,
        *,
        prefix: str = "",
        prompt: Question | None = None,
        draft: str | None = None,
        template: str | None = None,
        alternatives: int = 0,
        wants_steps: bool = False,
        timeout: float | None = None,
        priority: int = 0,
    ) -> CaptionRequest:
        """The request; `picture` gives the file's bytes and runs in a worker thread. What is behind
        a URL it gets from the function that it is given.

        Raises:
            BadSetting: a value out of range or in conflict, or a template that cannot be read;
                `prefix` leads to sampling fields.
            NotReady: the model is not loaded, so that its canvas length is not known.
        """
        config, model = self._service.config, self._service.model
        question, warnings = suited(model, prompt)
        texts = (("prompt", text_of(question)), ("draft", draft), ("template", template))
        for name, text in texts:
            if text is not None and len(text) > self._max_prompt_characters:
                raise BadSetting(
                    f"{name} has {len(text)} characters, the limit is "
                    f"{self._max_prompt_characters}",
                    param=name,
                )
        if draft is not None and not draft.strip():
            raise BadSetting("draft must not be blank", param="draft")
        if timeout is not None and not 0 < timeout <= config.max_request_timeout:
            raise BadSetting(
                f"timeout_seconds must be above 0 and at most {config.max_request_timeout:g}",
                param="timeout_seconds",
            )
        settings = sampling.resolve(
            model.canvas_length, config.max_canvas, model.preferences.preset, prefix
        )
        settings = replace(settings, alternatives=alternatives)
        holes = None
        if template is not None:
            if draft is not None:
                raise BadSetting("draft and template exclude each other", param="template")
            try:
                holes = parse(template)
            except TemplateError as error:
                raise BadSetting(str(error), param="template") from None
        elif draft is None:
            settings = settings.preferring(model.preferences)

        def image() -> Image.Image:
            return decode_image(picture(self._fetch), self._limits)

        return CaptionRequest(
            image, settings, question, warnings, draft, holes, wants_steps, priority, timeout
        )

"""Pictures through an engine: begun from any thread, told to whoever began them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from rediff_model.sampling.outputs import Generation
from server.api.responses import caption_confidence
from server.bulk.item import BulkError, Captioned
from server.bulk.pictures import PictureError
from server.engine.request import Failure, Job

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from rediff_model.sampling.params import SamplerSettings
    from server.engine.engine import Engine
    from server.engine.request import Event, Prepared, Runner
    from server.offline import Fitted

_REASONS: Final = {
    "request": "the caption could not be begun",
    "step": "the step that computed it failed twice",
    "numbers": "the model gave numbers that are not finite",
    "memory": "there is not enough memory for it",
}

logger = logging.getLogger(__name__)


class Work:
    """An engine that is ready, and how pictures go in and captions come out."""

    def __init__(self, engine: Engine) -> None:
        assert engine.runner is not None
        self._engine = engine
        self.runner: Runner = engine.runner

    def begin(
        self,
        picture: Image.Image,
        fitted: Fitted,
        tell: Callable[[Event | PictureError], None],
    ) -> None:
        """Encode a picture and queue it; `tell` hears what `result` understands, once."""
        try:
            prompt = self.runner.prepare(picture, fitted.question)
        # Whatever one picture does to the model must not cost the others.
        except Exception as error:
            logger.debug("a picture could not be encoded", exc_info=True)
            tell(PictureError(f"it cannot be encoded: {error}"))
        else:
            self._queue(prompt, fitted.settings, tell, may_fail=True)

    def result(self, event: Event | PictureError, fitted: Fitted) -> Captioned | PictureError:
        """The caption of a picture begun with `fitted`, or why there is none.

        Raises:
            BulkError: the engine ended.
        """
        if isinstance(event, PictureError):
            return event
        if isinstance(event, Generation):
            text = self.runner.decode(event.ids).strip()
            return Captioned(
                text=text,
                confidence=caption_confidence(text, event.confidences[: len(event.ids)]),
                revisions=event.revisions,
                steps=event.steps,
                finish_reason=event.finish_reason,
                warning="; ".join(fitted.warnings),
            )
        assert isinstance(event, Failure)
        if event.kind == "engine":
            raise BulkError(f"the engine ended: {self._engine.error}")
        return PictureError(event.message or _REASONS.get(event.kind, event.kind))

    def _queue(
        self,
        prompt: Prepared,
        settings: SamplerSettings,
        tell: Callable[[Event | PictureError], None],
        *,
        may_fail: bool,
    ) -> None:
        def told(event: Event) -> None:
            # A step fails for everybody in it, whoever is the cause: the others have a second try.
            if may_fail and isinstance(event, Failure) and event.kind == "step":
                self._queue(prompt, settings, tell, may_fail=False)
            else:
                tell(event)

        self._engine.submit(Job(prompt, settings, told))

"""The events of a streamed caption, and how they are read from lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from server.api.schemas import CaptionAnswer
from server.client.errors import BadAnswer, ServerRefused

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MASK_TEXT: Final = "▒"
"""Stands for a mask in `Step.text`."""


class Change(BaseModel):
    """What one step did at one position."""

    position: int
    id: int
    text: str
    """The token's, with the space before it; empty of a token that ends the caption."""
    confidence: float
    kind: Literal["reveal", "revise"]
    was: int | None = None
    """The id of the token that was revised."""


class Step(BaseModel):
    """One denoising step."""

    step: int
    steps: int
    """The most that the schedule takes."""
    masked: int
    """Positions that are masked still."""
    text: str
    """The canvas up to its first end, a `▒` for each mask."""
    changed: list[Change]


class CanvasToken(BaseModel):
    """A token that stands on the canvas before anything is written."""

    position: int
    id: int
    text: str
    kind: Literal["draft", "fixed", "choice"]


class Canvas(BaseModel):
    """What a draft or a template puts on the canvas, ahead of the first step that writes."""

    tokens: list[CanvasToken]
    holes: list[tuple[int, int]] = []
    """Of a template: the first position of each hole and the first behind it."""


Event = Canvas | Step | CaptionAnswer


class EventReader:
    """Puts events together from the lines of a stream."""

    def __init__(self) -> None:
        self._name = ""
        self._data: list[str] = []
        self.done = False
        """The caption has come."""

    def read(self, line: str) -> Event | None:
        """The event that the line ends, if it ends one of those.

        Raises:
            ServerRefused: the event is an error.
            BadAnswer: the data is not that of this API.
        """
        if line.startswith("event:"):
            self._name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            self._data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and self._data:
            name, data = self._name, "\n".join(self._data)
            self._name, self._data = "", []
            return self._event(name, data)
        return None

    def end(self) -> None:
        """Check that nothing is missing.

        Raises:
            BadAnswer: the stream ended before its caption.
        """
        if not self.done:
            raise BadAnswer("the stream ended before its caption")

    def _event(self, name: str, data: str) -> Event | None:
        if name == "canvas":
            return parsed(Canvas.model_validate_json, data)
        if name == "step":
            return parsed(Step.model_validate_json, data)
        if name == "done":
            self.done = True
            return parsed(CaptionAnswer.model_validate_json, data)
        if name == "error":
            raise ServerRefused.from_body(parsed(_Failure.model_validate_json, data).model_dump())
        return None


class _Failure(BaseModel):
    error: dict[str, object]


def parsed(read: Callable[[str | bytes], T], data: str | bytes) -> T:
    """`read(data)`, a body of this API.

    Raises:
        BadAnswer: it is none.
    """
    try:
        return read(data)
    except ValidationError as error:
        raise BadAnswer(f"the server's answer is not one of this API: {error}") from None

"""One caption with all its steps, which a notebook shows as an animation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from server.client.animation import Cell, animation
from server.client.events import Canvas, Step

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.api.schemas import CaptionAnswer


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    picture: bytes
    """The file that was sent."""
    canvas: Canvas
    """What stood there at first; empty without a draft or a template."""
    steps: tuple[Step, ...]
    answer: CaptionAnswer

    @classmethod
    def of(cls, picture: bytes, events: Iterable[Canvas | Step | CaptionAnswer]) -> Self:
        """The run of the events of a stream, up to its answer."""
        canvas = Canvas(tokens=[])
        steps: list[Step] = []
        for event in events:
            if isinstance(event, Canvas):
                canvas, steps = event, []
            elif isinstance(event, Step):
                steps.append(event)
            else:
                return cls(picture, canvas, tuple(steps), event)
        raise ValueError("the events hold no answer")

    def canvases(self) -> list[list[Cell]]:
        """The canvas before the first step and after each one."""
        written = [change.position for step in self.steps for change in step.changed]
        given = [token.position for token in self.canvas.tokens]
        cells = [Cell()] * (1 + max((*written, *given), default=-1))
        for token in self.canvas.tokens:
            cells[token.position] = Cell(token.text)
        canvases = [list(cells)]
        for step in self.steps:
            cells = [replace(cell, kind="", was="") for cell in cells]
            for change in step.changed:
                was = cells[change.position].text
                cells[change.position] = Cell(change.text, change.kind, was or "")
            canvases.append(list(cells))
        return canvases

    def _repr_html_(self) -> str:
        """The animation, for notebooks: no script, every text escaped."""
        answer = self.answer
        counts = f"{answer.steps} steps, {answer.revisions} revisions: {answer.caption}"
        return animation(self.picture, self.canvases(), counts)

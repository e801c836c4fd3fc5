"""The scene graph: what is in a picture of stickers, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Size = Literal["small", "large"]
RelationKind = Literal["left of", "right of", "above", "below"]

PICTURE_SIZE = 224
"""Side of a scene in pixels."""

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
"""Plate colours."""

SHAPES = ("round", "square", "oval", "diamond", "star")
"""Plate shapes."""

SIZES: tuple[Size, ...] = ("small", "large")

BACKDROPS = ("white", "grey", "cream", "mint", "lilac", "sky blue")
"""Backdrop colours, all pale, disjoint from the plate colours."""

PATTERNS = ("plain", "striped", "dotted", "checkered")

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")

RELATION_MARGIN = 40
"""Pixels by which two centres must differ along an axis for a relation to hold."""


@dataclass(frozen=True, slots=True)
class Sticker:
    """One picture on its plate. `box` is the plate's (x0, y0, x1, y1) in pixels, end exclusive."""

    name: str
    vendor: str
    colour: str
    shape: str
    size: Size
    box: tuple[int, int, int, int]

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the plate's middle in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def cell(self) -> tuple[int, int]:
        """(row, column) of the 3 x 3 grid that the centre lies in, each 0 to 2."""
        x, y = self.centre
        return min(2, int(3 * y / PICTURE_SIZE)), min(2, int(3 * x / PICTURE_SIZE))

    @property
    def place(self) -> int:
        """Number of that cell, row by row, 0 to 8."""
        row, column = self.cell
        return len(COLUMNS) * row + column


@dataclass(frozen=True, slots=True)
class Scene:
    """A backdrop and two to five stickers of different names, in reading order (row, column)."""

    seed: int
    backdrop: str
    pattern: str
    stickers: tuple[Sticker, ...]

    def holds(self, subject: int, kind: RelationKind, object: int) -> bool:
        """Whether sticker `subject` stands in relation `kind` to sticker `object`."""
        (ax, ay), (bx, by) = self.stickers[subject].centre, self.stickers[object].centre
        if kind == "left of":
            return bx - ax >= RELATION_MARGIN
        if kind == "right of":
            return ax - bx >= RELATION_MARGIN
        if kind == "above":
            return by - ay >= RELATION_MARGIN
        return ay - by >= RELATION_MARGIN

    @property
    def relations_expected(self) -> int:
        """How many different true relations a complete caption states."""
        return 1 if len(self.stickers) < 4 else 2

"""A run as HTML that moves by style alone: its frames lie on each other and show in turn."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

from rediff_model.files.image_formats.names import format_of

if TYPE_CHECKING:
    from collections.abc import Sequence

FRAME_SECONDS: Final = 0.16
REST_SECONDS: Final = 2.0
"""For which the last frame stays."""
_COLOURS: Final = {
    "reveal": "background:#c9eed9;color:#0c4527",
    "revise": "background:#ffdf9f;color:#5a3500",
}
_MASK: Final = '<span style="opacity:.35">▒</span>'
_STYLE: Final = """
.{name} {{ display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start; max-width: 60em; }}
.{name} > img {{ width: 224px; }}
.{name} > div {{ flex: 1 1 20em; display: grid; font: 15px/1.7 sans-serif; }}
.{name} p {{ grid-area: 1 / 1; margin: 0; visibility: hidden;
  animation: {name} {seconds:.2f}s step-end infinite; }}
.{name} p:last-of-type {{ animation-name: {name}-last; }}
@keyframes {name} {{ 0% {{ visibility: visible; }} {frame:.3f}%, 100% {{ visibility: hidden; }} }}
@keyframes {name}-last {{ 0% {{ visibility: visible; }}
  {last:.3f}%, 100% {{ visibility: hidden; }} }}
@media (prefers-reduced-motion) {{ .{name} p {{ animation: none; }}
  .{name} p:last-of-type {{ visibility: visible; }} }}
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands at one position of the canvas."""

    text: str | None = None
    """None is a mask; empty behind the end of the caption."""
    kind: str = ""
    """`reveal` or `revise` in the step that did it, else empty."""
    was: str = ""
    """The text that a revision replaced."""


def animation(picture: bytes, canvases: Sequence[Sequence[Cell]], below: str) -> str:
    """HTML of a picture, the canvas before and after each step beside it, and a line below."""
    seconds = FRAME_SECONDS * (len(canvases) - 1) + REST_SECONDS
    digest = hashlib.sha256(repr((canvases, below)).encode()).hexdigest()
    # Styles of a notebook hold for the whole page.
    name = f"rediff-{digest[:12]}"
    style = _STYLE.format(
        name=name,
        seconds=seconds,
        frame=100 * FRAME_SECONDS / seconds,
        last=100 * REST_SECONDS / seconds,
    )
    frames = "".join(
        f'<p style="animation-delay:{number * FRAME_SECONDS:.2f}s">{_line(cells)}</p>'
        for number, cells in enumerate(canvases)
    )
    return (
        f'<style>{style}</style><div class="{name}">{_picture(picture)}'
        f"<div>{frames}</div></div><p>{escape(below)}</p>"
    )


def _line(cells: Sequence[Cell]) -> str:
    return "".join(map(_cell, cells))


def _cell(cell: Cell) -> str:
    if cell.text is None:
        return _MASK
    text = escape(cell.text)
    if not cell.kind or not cell.text.strip():
        return text
    was = f' title="was {escape(cell.was.strip())}"' if cell.was.strip() else ""
    return f'<span style="{_COLOURS[cell.kind]}"{was}>{text}</span>'


def _picture(data: bytes) -> str:
    kind = format_of(data)
    if kind is None:
        return ""
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    return f'<img alt="the picture" src="{source}">'

"""Captions on standard output, for a few files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.bulk.names import one_line, utf8
from server.terminal import json_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.bulk.item import Captioned, Item


class Printed:
    """The caption alone when there is one file, else `FILE: caption`, or JSON."""

    def __init__(self, echo: Callable[[str], None], *, alone: bool, as_json: bool) -> None:
        """`echo` prints a line."""
        self._echo = echo
        self._alone = alone
        self._as_json = as_json

    def refuses(self, item: Item) -> str | None:
        return None

    def holds(self, item: Item) -> bool:
        return False

    def add(self, item: Item, caption: Captioned) -> None:
        if self._as_json:
            row = {
                "file": utf8(item.source),
                "caption": caption.text,
                "finish_reason": caption.finish_reason,
                "steps": caption.steps,
                "revisions": caption.revisions,
            }
            if caption.warning:
                row["warnings"] = [caption.warning]
            self._echo(json_line(row))
        else:
            name = one_line(item.source)
            self._echo(caption.text if self._alone else f"{name}: {caption.text}")

    def finish(self) -> None:
        """Every line is out."""

    def close(self) -> None:
        """Nothing is open."""

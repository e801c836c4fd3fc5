"""Pictures without a caption, with the reasons: JSON lines."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rediff_model.files.atomic import replacing

if TYPE_CHECKING:
    from pathlib import Path


class Report:
    """Lines are collected in a temporary file, which replaces `path` when the run ends."""

    def __init__(self, path: Path) -> None:
        self._closing = ExitStack()
        self._stream = self._closing.enter_context(replacing(path))

    def add(self, name: str, source: str, reason: str) -> None:
        """Write the line of one picture."""
        row = {"id": name, "source": source, "reason": reason}
        self._stream.write(json.dumps(row).encode() + b"\n")
        self._stream.flush()

    def close(self) -> None:
        """Put the file in place."""
        self._closing.close()

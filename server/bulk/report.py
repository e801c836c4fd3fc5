"""Pictures without a caption, with the reasons: JSON lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path


class Report:
    """Lines are collected beside the file and take its place when the run ends."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._stream: BinaryIO = self._part.open("wb")

    def add(self, name: str, source: str, reason: str) -> None:
        """Tell of one picture."""
        row = {"id": name, "source": source, "reason": reason}
        self._stream.write(json.dumps(row).encode() + b"\n")
        self._stream.flush()

    def close(self) -> None:
        """Nothing more comes."""
        self._stream.close()
        self._part.replace(self._path)

"""Rows of a run that is under way: one JSON object a line, safe from kills at any point."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from rediff_model.files import jsonl
from rediff_model.files.lock import lock
from server.bulk.item import BulkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


class Journal:
    """The rows so far. What a kill left of a last line is cut off when it is opened again."""

    def __init__(self, path: Path, head: Mapping[str, Any], *, anew: bool) -> None:
        """`head` says what the rows depend on; `anew` forgets those of an earlier run.

        Raises:
            Locked: another run writes to it.
            BulkError: one with another head has.
        """
        self._path = path
        self._file = path.open("a+b")
        try:
            lock(self._file, path)
            if anew:
                self._file.truncate(0)
            self.sources = self._read(json.loads(json.dumps(head)))
        except BaseException:
            self._file.close()
            raise

    def _read(self, head: Mapping[str, Any]) -> set[str]:
        """The pictures that have a row, after a check of the head and a cut behind the rows."""
        sources: set[str] = set()
        end = 0
        for line in jsonl.lines(self._file):
            row = _parsed(line.data)
            if row is None:
                break
            if end == 0:
                self._check(row, head)
            else:
                sources.add(row["source"])
            end = line.offset + len(line.data)
        self._file.truncate(end)
        if end == 0:
            self._write(head)
        return sources

    def _check(self, found: Mapping[str, Any], head: Mapping[str, Any]) -> None:
        for name in head:
            if found.get(name) != head[name]:
                raise BulkError(
                    f"{self._path} was begun with {name} {found.get(name)!r}, now it is "
                    f"{head[name]!r}: --overwrite begins anew"
                )

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row, which is there from now on even if the process is killed."""
        self._write(row)
        self.sources.add(row["source"])

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows in order."""
        rows = jsonl.read(self._path)
        next(rows)
        for _, row in rows:
            assert isinstance(row, dict)
            yield row

    def close(self) -> None:
        """Keep the rows for a run that goes on."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def remove(self) -> None:
        """The rows are in a better place."""
        self._path.unlink()
        self._file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        # In ASCII, so that a file name that is no UTF-8 comes back as it was.
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A whole line's object; None when the line was cut, or lost with the power."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = jsonl.parse(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None

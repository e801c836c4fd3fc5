"""Captions in one file: jsonl, json, csv or parquet, made from the journal at the end."""

from __future__ import annotations

import csv
import json
import os
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from rediff_model.files import jsonl
from rediff_model.files.atomic import is_direct, replacing, sweep
from rediff_model.files.lock import lock
from server.bulk import parquet
from server.bulk.item import BulkError, utf8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from server.bulk.item import Captioned, Item
    from server.bulk.outputs import Doubt

TableFormat = Literal["jsonl", "json", "csv", "parquet"]

COLUMNS: Final = (
    "id",
    "source",
    "caption",
    "confidence",
    "revisions",
    "steps",
    "finish_reason",
    "warning",
)
_ROW_GROUP: Final = 10_000


def journal_path(path: Path) -> Path:
    """Where the rows of an output are kept until it is written."""
    return path.with_name(path.name + ".journal")


class Table:
    """One output file, and one more for doubtful captions. Both appear at the end."""

    once = True

    def __init__(
        self,
        path: Path,
        doubtful: Path | None,
        doubt: Doubt,
        table_format: TableFormat,
        head: Mapping[str, Any],
        *,
        overwrite: bool,
    ) -> None:
        """`head` is what the journal is checked against.

        Raises:
            BulkError: the journal is in use or of another run, or pyarrow is not there.
        """
        if table_format == "parquet":
            parquet.load()
        self._path = path
        self._doubtful = doubtful
        self._doubt = doubt
        self._format = table_format
        self._names: dict[str, str] = {}
        self._closing = ExitStack()
        journal = journal_path(path)
        if is_direct(path):
            # Such as a pipe: nothing can lie beside it, and no later run goes on.
            scratch = self._closing.enter_context(TemporaryDirectory(prefix="rediff-"))
            journal = Path(scratch) / "journal"
        journal.parent.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(journal, head, overwrite=overwrite)
        sweep(path.resolve().parent)

    def refusal(self, item: Item) -> str | None:
        if self._format != "json":
            return None
        # Only there a name stands for the picture, and a second one would replace the first.
        owner = self._names.setdefault(item.name, item.identity)
        return None if owner == item.identity else f"its id {item.name} is that of {owner}"

    def is_done(self, item: Item) -> bool:
        return item.identity in self._journal.sources

    def add(self, item: Item, caption: Captioned) -> None:
        self._journal.append(caption.row(item))

    def finish(self) -> None:
        """Write the files; the journal goes only when they are all there."""
        if self._doubtful is not None:
            self._write(self._doubtful, lambda row: self._doubt(row["confidence"]))
        self._write(self._path, lambda row: not self._doubt(row["confidence"]))
        self._journal.remove()

    def close(self) -> None:
        self._journal.close()
        self._closing.close()

    def _write(self, path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
        rows = (
            {name: _clean(row.get(name, "")) for name in COLUMNS} for row in self._journal.rows()
        )
        with replacing(path) as stream:
            _WRITERS[self._format]((row for row in rows if wanted(row)), stream)


def _clean(value: Any) -> Any:
    return utf8(value) if isinstance(value, str) else value


def _jsonl(rows: Iterator[dict[str, Any]], stream: BinaryIO) -> None:
    stream.writelines(map(jsonl.dump, rows))


def _json(rows: Iterator[dict[str, Any]], stream: BinaryIO) -> None:
    lead = "{"
    for row in rows:
        name, caption = (json.dumps(row[key], ensure_ascii=False) for key in ("id", "caption"))
        stream.write(f"{lead}\n  {name}: {caption}".encode())
        lead = ","
    stream.write(b"{}\n" if lead == "{" else b"\n}\n")


def _csv(rows: Iterator[dict[str, Any]], stream: BinaryIO) -> None:
    # The module quotes what its own line end holds: with a line feed alone, older versions leave
    # carriage returns bare, where readers see another row.
    writer = csv.DictWriter(_Lines(stream), COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)


class _Lines:
    """Writes rows that end in CRLF with a line feed alone."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, row: str) -> None:
        self._stream.write(row.removesuffix("\r\n").encode() + b"\n")


def _parquet(rows: Iterator[dict[str, Any]], stream: BinaryIO) -> None:
    pyarrow, arrow_parquet = parquet.load()
    kinds = {
        "confidence": pyarrow.float64(),
        "revisions": pyarrow.int32(),
        "steps": pyarrow.int32(),
    }
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
    with arrow_parquet.ParquetWriter(stream, schema) as writer:
        while part := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(part, schema))


_WRITERS: Final = {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet}


class Journal:
    """The rows so far. What a kill left of a last line is cut off when it is opened again."""

    def __init__(self, path: Path, head: Mapping[str, Any], *, overwrite: bool) -> None:
        """`head` says what the rows depend on; `overwrite` forgets those of an earlier run.

        Raises:
            Locked: another run writes to it.
            BulkError: one with another head has.
        """
        self._path = path
        self._file = path.open("a+b")
        try:
            lock(self._file, path)
            if overwrite:
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
                    f"{head[name]!r}: --overwrite starts over"
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

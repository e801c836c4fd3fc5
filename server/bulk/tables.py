"""Captions in one file: jsonl, json, csv or parquet, made from the journal at the end."""

from __future__ import annotations

import csv
import json
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from rediff_model.files import jsonl
from rediff_model.files.atomic import is_direct, replacing, sweep
from server.bulk import arrow
from server.bulk.journal import Journal
from server.bulk.names import utf8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from server.bulk.item import Captioned, Item
    from server.bulk.output import Doubt

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


def journal_of(path: Path) -> Path:
    """Where the rows of an output are kept until it is written."""
    return path.with_name(path.name + ".journal")


class Table:
    """One output file, and one more for doubtful captions. Both appear at the end."""

    def __init__(
        self,
        path: Path,
        doubtful: Path | None,
        doubt: Doubt,
        table_format: TableFormat,
        head: Mapping[str, Any],
        *,
        anew: bool,
    ) -> None:
        """`head` is what the journal is checked against.

        Raises:
            BulkError: the journal is in use or of another run, or pyarrow is not there.
        """
        if table_format == "parquet":
            arrow.load()
        self._path = path
        self._doubtful = doubtful
        self._doubt = doubt
        self._format = table_format
        self._names: dict[str, str] = {}
        self._closing = ExitStack()
        journal = journal_of(path)
        if is_direct(path):
            # Such as a pipe: nothing can lie beside it, and no later run goes on.
            scratch = self._closing.enter_context(TemporaryDirectory(prefix="rediff-"))
            journal = Path(scratch) / "journal"
        journal.parent.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(journal, head, anew=anew)
        sweep(path.resolve().parent)

    def refuses(self, item: Item) -> str | None:
        if self._format != "json":
            return None
        # Only there a name stands for the picture, and a second one would replace the first.
        owner = self._names.setdefault(item.name, item.identity)
        return None if owner == item.identity else f"its id {item.name} is that of {owner}"

    def holds(self, item: Item) -> bool:
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
    pyarrow, parquet = arrow.load()
    kinds = {
        "confidence": pyarrow.float64(),
        "revisions": pyarrow.int32(),
        "steps": pyarrow.int32(),
    }
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
    with parquet.ParquetWriter(stream, schema) as writer:
        while part := list(islice(rows, _ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(part, schema))


_WRITERS: Final = {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet}

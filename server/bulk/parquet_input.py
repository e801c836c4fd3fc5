"""Pictures of a parquet file: a column of bytes, or of Hugging Face's `{bytes, path}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rediff_model.files.image_formats.names import SUFFIX, format_of
from server.bulk import arrow
from server.bulk.item import BulkError, Item, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ROWS: Final = 16
"""Rows read at a time; pictures of them all are in memory."""


def pictures_of(
    path: Path, image_column: str, id_column: str | None
) -> Iterator[Item | Unreadable]:
    """Every row's picture, named by the column, or by the row's number."""
    pyarrow, parquet = arrow.load()
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [image_column] if id_column is None else [image_column, id_column]
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                for values in batch.to_pylist():
                    member = f"{row:08d}"
                    name = member if id_column is None else str(values[id_column])
                    yield _item(path, member, name, values[image_column])
                    row += 1
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        yield Unreadable(str(path), " ".join(str(error).split()))


def _item(path: Path, member: str, name: str, value: Any) -> Item | Unreadable:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        return Unreadable(f"{path}#{member}", "the row holds no bytes of a picture")
    kind = format_of(content)
    suffix = ".bin" if kind is None else SUFFIX[kind]
    return Item(str(path), name, name.lstrip("/"), suffix, member, content=content)


def count(path: Path) -> int:
    """Rows of the file; 0 when it cannot be read."""
    pyarrow, parquet = arrow.load()
    try:
        return int(parquet.read_metadata(path).num_rows)
    except (OSError, ValueError, pyarrow.ArrowException):
        return 0


def check(path: Path, image_column: str, id_column: str | None) -> None:
    """Refuse a file without these columns.

    Raises:
        BulkError: it has others, or pyarrow is not there.
    """
    pyarrow, parquet = arrow.load()
    try:
        names = parquet.read_schema(path).names
    except (OSError, ValueError, pyarrow.ArrowException):
        # Told when its turn comes, like any other broken shard.
        return
    for column in (image_column, id_column):
        if column is not None and column not in names:
            raise BulkError(f"{path} has no column {column!r}, only {', '.join(names)}")

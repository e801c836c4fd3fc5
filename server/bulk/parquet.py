"""Parquet files: pictures of a column of bytes (or Hugging Face's `{bytes, path}`), and pyarrow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rediff_model.files.image_formats.names import SUFFIX, format_of
from server.bulk.item import BulkError, Item, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

_ROWS: Final = 16
"""Rows read at a time; pictures of them all are in memory."""


def pictures_of(
    path: Path, image_column: str, id_column: str | None
) -> Iterator[Item | Unreadable]:
    """Every row's picture, named by the column, or by the row's number where that is null."""
    pyarrow, parquet = load()
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [image_column] if id_column is None else [image_column, id_column]
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                # One by one: a text that is no UTF-8 must not cost the other rows.
                for values in zip(*(batch.column(name) for name in columns), strict=True):
                    yield _item(path, f"{row:08d}", *values)
                    row += 1
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        yield Unreadable(str(path), " ".join(str(error).split()))


def _item(path: Path, member: str, image: Any, key: Any = None) -> Item | Unreadable:
    """The picture of a row, from Arrow's scalars; `member` is its name if it has no id."""
    try:
        name = _name(key) or member
    except UnicodeDecodeError:
        return Unreadable(f"{path}#{member}", "its id is bytes that are no UTF-8")
    value = image.as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        return Unreadable(f"{path}#{member}", "the row holds no bytes of a picture")
    kind = format_of(content)
    suffix = ".bin" if kind is None else SUFFIX[kind]
    return Item(str(path), name, name.lstrip("/"), suffix, member, content=content)


def _name(key: Any) -> str:
    """The text of an id; empty for none and for null, which among numbers may be NaN.

    Raises:
        UnicodeDecodeError: it is bytes that are no text.
    """
    value = None if key is None else key.as_py()
    if value is None or value != value:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)


def count(path: Path) -> int:
    """Rows of the file; 0 when it cannot be read."""
    pyarrow, parquet = load()
    try:
        return int(parquet.read_metadata(path).num_rows)
    except (OSError, ValueError, pyarrow.ArrowException):
        return 0


def check(path: Path, image_column: str, id_column: str | None) -> None:
    """Refuse a file without these columns.

    Raises:
        BulkError: it has others, ids that are lists or objects, or pyarrow is not there.
    """
    pyarrow, parquet = load()
    try:
        schema = parquet.read_schema(path)
    except (OSError, ValueError, pyarrow.ArrowException):
        # Told when its turn comes, like any other broken shard.
        return
    for column in (image_column, id_column):
        if column is not None and column not in schema.names:
            raise BulkError(f"{path} has no column {column!r}, only {', '.join(schema.names)}")
    if id_column is not None and pyarrow.types.is_nested(kind := schema.field(id_column).type):
        raise BulkError(f"{path}: ids of column {id_column!r} must be text or numbers, not {kind}")


def load() -> tuple[ModuleType, Any]:
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        BulkError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BulkError("parquet needs pyarrow: pip install 'rediff-serve[data]'") from None
    return pyarrow, pyarrow.parquet

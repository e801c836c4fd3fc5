"""pyarrow, which only those who read or write parquet need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.bulk.item import BulkError

if TYPE_CHECKING:
    from types import ModuleType


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

"""One run at a time on what is under way in a file."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING, BinaryIO

from server.bulk.item import BulkError

if TYPE_CHECKING:
    from pathlib import Path


def hold(stream: BinaryIO, told: Path) -> None:
    """Keep other runs away until the stream is closed or the process has ended.

    Raises:
        BulkError: another run is there already; names `told`.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BulkError(f"{told}: another run is writing to it") from None

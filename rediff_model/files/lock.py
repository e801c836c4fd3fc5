"""One process at a time: locks that end with the process that holds them."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK: Final = "lock"
"""Name of the file that locks a folder."""

logger = logging.getLogger(__name__)


class Locked(Exception):
    """Another process holds the lock; the message names the file, and the process if known."""


def lock(stream: IO[Any], path: Path, holder: str = "another process") -> None:
    """Lock an open file until it is closed or the process ends; `path` is named in errors.

    A file system without locks is reported in the log.

    Raises:
        Locked: another process, or another stream of this one, holds it; names `holder`.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Locked(f"{path} is in use by {holder}; wait for it or end it") from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): begin no second run on it", path, error)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock a folder for the time of the block; its file `lock` holds the process number.

    Raises:
        Locked: another process holds it; names its number.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        file.seek(0)
        lock(file, folder, f"process {file.read(20).strip() or 'unknown'}")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield

"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, TypeVar

from training.config import TrainConfigError
from training.loop.state import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Config = TypeVar("Config")

logger = logging.getLogger(__name__)


def alone(run: Callable[[Config, Path], Path]) -> Callable[[Config, Path], Path]:
    """Let `run(config, folder)` begin when no other process runs in `folder`, or not at all."""

    @wraps(run)
    def held(config: Config, folder: Path) -> Path:
        if not processes().is_main_process:
            return run(config, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise TrainConfigError(f"{folder} is a file: name a folder for the run") from None
        with hold(folder):
            return run(config, folder)

    return held


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes away from `folder` meanwhile; a lock ends with its process.

    Raises:
        TrainConfigError: another process is there; names its number.
    """
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise TrainConfigError(
                f"{folder} is in use by process {file.read().strip() or 'unknown'}; "
                "wait for it or end it"
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): begin no second run in it", folder, error)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield

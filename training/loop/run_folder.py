"""The folder of a run: one run at a time in it, and always with the same configuration."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from training.config import TrainConfigError, Training
from training.loop.state import processes
from training.whole_file import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
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


@contextmanager
def claim(folder: Path, config: Training, free: Collection[str]) -> Iterator[None]:
    """Compare the configuration with what `folder/config.json` notes, and note it in the end.

    In between a run looks at what its configuration names: one that fails there leaves no note, so
    that it can be put right. The keys `free`, such as `threads` or `expert.timeout`, may change
    between runs. Keys that a note lacks are taken to have had their defaults.

    Raises:
        TrainConfigError: another configuration is noted.
    """
    path = folder / "config.json"
    values = config.model_dump(mode="json")
    noted = _read(path) if path.exists() else None
    if noted is not None:
        known = {key: deepcopy(value) for key, value in noted.items() if key in values}
        for name in free:
            _copy(values, known, name.split("."))
        whole = type(config).parse(known, path).model_dump(mode="json")
        for place, before, now in differences(whole, values):
            raise TrainConfigError(
                f"{folder} was begun with another {place}: {_short(before)}, now {_short(now)}"
            )
    yield
    if values != noted:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, values)


def differences(before: object, now: object, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ: dotted place, the one value and the other, as deep as they
    have the same keys or as many items."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        parts = [(key, before[key], now[key]) for key in sorted(before)]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        parts = [(str(number), *both) for number, both in enumerate(zip(before, now, strict=True))]
    else:
        if before != now:
            yield place, before, now
        return
    for key, one, other in parts:
        yield from differences(one, other, f"{place}.{key}" if place else key)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _read(path: Path) -> dict[str, Any]:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(noted, dict):
        raise TrainConfigError(f"{path} must hold an object, got {type(noted).__name__}")
    return noted


def _copy(values: dict[str, Any], known: dict[str, Any], place: list[str]) -> None:
    *parents, last = place
    for parent in parents:
        values, known = values.get(parent, {}), known.setdefault(parent, {})
    if last in values:
        known[last] = values[last]

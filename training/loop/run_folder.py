"""The folder of a run: one run at a time in it, and always with the same configuration."""

from __future__ import annotations

import json
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from rediff_model.files.atomic import write_json
from rediff_model.files.lock import Locked, folder_lock
from training.config import TrainConfigError, Training
from training.loop.state import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

Config = TypeVar("Config")


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
        try:
            with folder_lock(folder):
                return run(config, folder)
        except Locked as error:
            raise TrainConfigError(str(error)) from None

    return held


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

"""Starts a training from its file, whatever kind of data the file names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.config import SceneTraining, TrainConfigError, read_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

KINDS = ("scenes", "conversations")


def stage1(path: Path, overrides: Sequence[str], folder: Path) -> Path:
    """Run Stage I as a YAML file says; the folder of the finished checkpoint.

    Raises:
        TrainConfigError: the file cannot be used.
    """
    values = read_values(path, overrides)
    if _kind(values, path) == "conversations":
        from training.conversations import stage1 as dialogue
        from training.conversations.config import DialogueTraining

        return dialogue.run(DialogueTraining.parse(values, path), folder)
    from training.scenes.stage1 import run

    return run(SceneTraining.parse(values, path), folder)


def stage2(path: Path, overrides: Sequence[str], folder: Path) -> Path:
    """Run Stage II as a YAML file says; the folder of the last checkpoint.

    Raises:
        TrainConfigError: the file cannot be used.
    """
    values = read_values(path, overrides)
    if _kind(values, path) == "conversations":
        from training.conversations import stage2 as dialogue
        from training.conversations.stage2_config import DialogueCorrection

        return dialogue.run(DialogueCorrection.parse(values, path), folder)
    from training.scenes.stage2 import SceneCorrection, run

    return run(SceneCorrection.parse(values, path), folder)


def _kind(values: Mapping[str, Any], path: Path) -> str:
    data = values.get("data")
    kind = data.get("kind", KINDS[0]) if isinstance(data, dict) else KINDS[0]
    if kind not in KINDS:
        raise TrainConfigError(f"{path}: data.kind must be one of {KINDS}, got {kind!r}")
    return str(kind)

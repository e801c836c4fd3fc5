"""Notes a run's configuration in its folder, so that no other one resumes its files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from training.config import TrainConfigError, Training
from training.whole_file import write_json

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path


def claim(folder: Path, config: Training, free: Collection[str]) -> None:
    """Note the configuration in `folder/config.json`, or compare it with what is noted.

    The keys `free` may change between runs. Keys that the noted one lacks are taken to have had
    their defaults.

    Raises:
        TrainConfigError: another configuration is noted.
    """
    path = folder / "config.json"
    values = config.model_dump(mode="json", exclude=set(free))
    if path.exists():
        noted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        current = config.model_dump(mode="json", include=set(free))
        known = {key: value for key, value in noted.items() if key in values}
        whole = type(config).parse(known | current, path).model_dump(mode="json")
        if differing := sorted(key for key in values if values[key] != whole[key]):
            raise TrainConfigError(
                f"{folder} was begun with another {differing[0]}: {whole[differing[0]]}, "
                f"now {values[differing[0]]}"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, values)

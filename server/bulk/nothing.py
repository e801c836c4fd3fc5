"""Why a run found no picture: what was looked for, and what is there."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from rediff_model.files.image_formats.names import SUFFIXES
from server.bulk.names import one_line

if TYPE_CHECKING:
    from pathlib import Path

    from server.bulk.inputs import Inputs

_SHOWN = 3
"""Inputs, and kinds of files of a folder, that are named."""


def nothing_found(inputs: Inputs) -> str:
    """One line about inputs that gave no picture."""
    reasons = [
        *(_of(path, inputs) for path in inputs.paths[:_SHOWN]),
        *(f"{path} lists no path" for path in inputs.lists[:_SHOWN]),
    ]
    more = len(inputs.paths) + len(inputs.lists) - len(reasons)
    return one_line("; ".join([*reasons, *([f"{more} more inputs"] if more else [])]))


def _of(path: Path, inputs: Inputs) -> str:
    if not path.is_dir():
        return f"{path} holds no picture"
    wanted = " or ".join(inputs.globs) if inputs.globs else f"file with {', '.join(SUFFIXES)}"
    names, folders = _names(path)
    kinds = Counter(os.path.splitext(name)[1] or "without a suffix" for name in sorted(names))
    held = [f"{count} {kind}" for kind, count in kinds.most_common(_SHOWN)]
    if folders:
        held.append(f"{folders} folder{'s' * (folders > 1)}")
        held[-1] += "" if inputs.recursive else " (--recursive enters)"
    below = " or below" if inputs.recursive else ""
    return f"no {wanted} in {path}{below}, which holds {' and '.join(held) or 'nothing'}"


def _names(folder: Path) -> tuple[list[str], int]:
    """The visible files of a folder, and the number of its folders."""
    names, folders = [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                if entry.is_dir():
                    folders += 1
                else:
                    names.append(entry.name)
    return names, folders

"""What a run tells of itself: means since the last line, to `log.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import torch

from rediff_model.files import jsonl
from rediff_model.files.atomic import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor


class Log:
    """Sums by name on the device, added up over all processes when a line is written.

    A run that goes on from step `start` takes back what it told of later ones, which it tells
    again; the first line of means is then of the steps since.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, start: int = 0) -> None:
        self._accelerator = accelerator
        self._sums: dict[str, Tensor] = {}
        self._path = folder / "log.jsonl"
        self._rows = [row for row in _read(self._path) if row["step"] <= start]
        before = self._rows[-1]["seconds"] if self._rows else 0.0
        self._started = time.monotonic() - before
        self._board: Any = None
        if accelerator.is_main_process:
            from torch.utils.tensorboard import SummaryWriter

            folder.mkdir(parents=True, exist_ok=True)
            # Other processes read it at this moment: what they find is the old one or this.
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in self._rows))
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def add(self, sums: Mapping[str, tuple[Tensor, Tensor | float]]) -> None:
        """Add sums and the numbers they are to be divided by; stays on the device."""
        for name, (total, count) in sums.items():
            wide = total.detach().to(torch.float64)
            pair = torch.stack((wide, torch.as_tensor(count, device=wide.device).to(wide)))
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def write(self, step: int, extra: Mapping[str, float]) -> dict[str, float]:
        """Write and return one line of means; parts that had no token are left out.

        All processes call, after having added the same names.
        """
        row: dict[str, float] = {}
        if self._sums:
            names = sorted(self._sums)
            pairs = torch.stack([self._sums[name] for name in names])
            pairs = self._accelerator.reduce(pairs, reduction="sum")
            for name, (total, count) in zip(names, pairs.tolist(), strict=True):
                if count:
                    row[name] = total / count
        row |= {**extra, "step": step, "seconds": time.monotonic() - self._started}
        self._sums.clear()
        if self._board is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: round(value, 5) for key, value in row.items()}) + "\n")
            for key, value in row.items():
                self._board.add_scalar(key, value, step)
        return row

    def judged(self, step: int) -> bool:
        """Whether a line tells of an evaluation at a step: it has no learning rate."""
        return any(row["step"] == step and "rate" not in row for row in self._rows)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _read(path: Path) -> list[dict[str, float]]:
    """The lines of a log, but for one that a kill cut off."""
    rows: list[dict[str, float]] = []
    if path.exists():
        with path.open("rb") as file:
            for line in jsonl.lines(file):
                with suppress(ValueError):
                    rows.append(cast("dict[str, float]", jsonl.parse(line.data)))
    return rows


def mean_parts(every: Sequence[Mapping[str, tuple[Tensor, Tensor]]]) -> dict[str, float]:
    """Means over batches of what an objective returns by part; parts without a token have none."""
    sums: dict[str, tuple[float, float]] = {}
    for parts in every:
        for name, (total, count) in parts.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + total.item(), before[1] + count.item())
    return {name: total / count for name, (total, count) in sums.items() if count}

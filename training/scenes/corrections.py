"""Corrected drafts as training canvases: the draft is the input, nothing is masked.

Shape suffixes: C canvas positions, N canvases.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from training.scenes.canvases import END_SLOT, NOWHERE, PAIR, Canvases

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.filter import Corrected


class CorrectionCanvases:
    """Deals corrected drafts picture by picture."""

    def __init__(
        self, rows: Sequence[Corrected], *, length: int, stop_id: int, weight: float = 1.0
    ) -> None:
        """`weight` is what each token of a corrected segment counts in the loss.

        Raises:
            ValueError: no rows.
        """
        if not rows:
            raise ValueError("no corrected drafts to train on")
        self._rows = tuple(rows)
        self._by_scene: dict[tuple[str, int], list[int]] = {}
        for number, row in enumerate(rows):
            self._by_scene.setdefault(row.scene, []).append(number)
        self._length = length
        self._stop_id = stop_id
        self._weight = weight

    def deal(
        self, pictures: int, per_picture: int, rng: np.random.Generator
    ) -> tuple[list[tuple[str, int]], Canvases]:
        """Scenes, and `per_picture` canvases of each in turn.

        Every draft is equally likely to bring its scene in; more drafts of that scene come with it,
        and come twice only where there are not enough.
        """
        scenes = []
        numbers: list[int] = []
        for first in rng.integers(0, len(self._rows), pictures).tolist():
            scene = self._rows[first].scene
            others = [number for number in self._by_scene[scene] if number != first]
            order = [first, *rng.permutation(np.array(others, dtype=np.int64)).tolist()]
            scenes.append(scene)
            numbers += [order[i % len(order)] for i in range(per_picture)]
        return scenes, self._canvases([self._rows[number] for number in numbers])

    def _canvases(self, rows: Sequence[Corrected]) -> Canvases:
        shape = (len(rows), self._length)
        inputs_NC = np.full(shape, self._stop_id, dtype=np.int64)
        targets_NC = inputs_NC.copy()
        weights_NC = np.zeros(shape, dtype=np.float32)
        slots_NC = np.full(shape, END_SLOT, dtype=np.int64)
        for n, row in enumerate(rows):
            size = min(len(row.ids), self._length)
            inputs_NC[n, :size] = row.ids[:size]
            targets_NC[n, :size] = row.labels[:size]
            slots_NC[n, :size] = 0
            weights_NC[n, [flag for flag in row.flags if flag < size]] = self._weight
        parts_NC = np.where(weights_NC > 0, PAIR, 0)
        places_NC = np.full(shape, NOWHERE, dtype=np.int64)
        return Canvases(
            inputs_NC,
            targets_NC,
            weights_NC,
            parts_NC,
            slots_NC,
            places_NC,
            np.zeros_like(weights_NC),
        )


def join(one: Canvases, other: Canvases) -> Canvases:
    """The canvases of both, in this order."""
    columns = (field.name for field in fields(Canvases))
    return Canvases(
        *(np.concatenate((getattr(one, name), getattr(other, name))) for name in columns)
    )

"""Corrected drafts as training canvases: the draft itself, or what it was on its way.

Shape suffixes: C canvas positions, N canvases.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from training.scenes.canvases import (
    CLEAN,
    END_SLOT,
    MASKED,
    NOT_OWN,
    NOWHERE,
    PAIR,
    REPLACED,
    Canvases,
    part_weights,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.correction.selection import Corrected
    from training.scenes.canvases import Mix

SceneKey = tuple[str, int]
"""Split and seed."""


class Deck:
    """Deals items picture by picture: every item is equally likely to bring its scene in."""

    def __init__(self, scenes: Sequence[SceneKey]) -> None:
        """`scenes` gives each item's. Raises ValueError if there is none."""
        if not scenes:
            raise ValueError("no corrected drafts to train on")
        self._scenes = tuple(scenes)
        self._by_scene: dict[SceneKey, list[int]] = {}
        for number, scene in enumerate(scenes):
            self._by_scene.setdefault(scene, []).append(number)

    def deal(
        self, pictures: int, per_picture: int, rng: np.random.Generator
    ) -> tuple[list[SceneKey], list[int]]:
        """Scenes, and the numbers of `per_picture` items of each in turn.

        Items come twice only where a scene has not enough of them.
        """
        scenes: list[SceneKey] = []
        numbers: list[int] = []
        for first in rng.integers(0, len(self._scenes), pictures).tolist():
            scene = self._scenes[first]
            others = [number for number in self._by_scene[scene] if number != first]
            order = [first, *rng.permutation(np.array(others, dtype=np.int64)).tolist()]
            scenes.append(scene)
            numbers += [order[i % len(order)] for i in range(per_picture)]
        return scenes, numbers


class CorrectionCanvases:
    """Drafts as they ended, nothing masked; what was corrected is trained, and nothing else."""

    def __init__(
        self, rows: Sequence[Corrected], *, length: int, stop_id: int, weight: float = 1.0
    ) -> None:
        """`weight` is what each token of a corrected segment counts in the loss.

        Raises:
            ValueError: no row has a corrected segment.
        """
        self._rows = [row for row in rows if row.flags]
        self._deck = Deck([row.scene for row in self._rows])
        self._length = length
        self._stop_id = stop_id
        self._weight = weight

    def deal(
        self, pictures: int, per_picture: int, rng: np.random.Generator
    ) -> tuple[list[SceneKey], Canvases]:
        """Scenes, and `per_picture` canvases of each in turn."""
        scenes, numbers = self._deck.deal(pictures, per_picture, rng)
        rows = [self._rows[number] for number in numbers]
        inputs_NC = _filled([row.ids for row in rows], self._length, self._stop_id)
        targets_NC = _filled([row.labels for row in rows], self._length, self._stop_id)
        weights_NC = np.zeros(inputs_NC.shape, dtype=np.float32)
        for n, row in enumerate(rows):
            weights_NC[n, [flag for flag in row.flags if flag < self._length]] = self._weight
        parts_NC = np.where(weights_NC > 0, PAIR, CLEAN)
        slots_NC = _slots(rows, self._length)
        return scenes, _canvases(inputs_NC, targets_NC, weights_NC, parts_NC, slots_NC)


class StateCanvases:
    """What drafts were after some of their steps, to be completed as they should have ended."""

    def __init__(
        self, rows: Sequence[Corrected], *, length: int, stop_id: int, mask_id: int
    ) -> None:
        """Raises ValueError if no row has states."""
        self._items = [(row, state) for row in rows for state in row.states]
        self._deck = Deck([row.scene for row, _ in self._items])
        self._length = length
        self._stop_id = stop_id
        self._mask_id = mask_id

    def deal(
        self, pictures: int, per_picture: int, mix: Mix, rng: np.random.Generator
    ) -> tuple[list[SceneKey], Canvases]:
        """Scenes, and `per_picture` canvases of each in turn; weights by part as in `mix`."""
        scenes, numbers = self._deck.deal(pictures, per_picture, rng)
        items = [self._items[number] for number in numbers]
        rows = [row for row, _ in items]
        inputs_NC = _filled([state for _, state in items], self._length, self._stop_id)
        targets_NC = _filled([row.labels for row in rows], self._length, self._stop_id)
        masked_NC = inputs_NC == self._mask_id
        wrong_NC = ~masked_NC & (inputs_NC != targets_NC)
        parts_NC = np.where(masked_NC, MASKED, np.where(wrong_NC, REPLACED, CLEAN))
        weights_NC = part_weights(parts_NC, mix)
        slots_NC = _slots(rows, self._length)
        weights_NC[slots_NC == END_SLOT] *= mix.end_weight
        return scenes, _canvases(inputs_NC, targets_NC, weights_NC, parts_NC, slots_NC)


def join(one: Canvases, other: Canvases) -> Canvases:
    """The canvases of both, in this order."""
    columns = (field.name for field in fields(Canvases))
    return Canvases(
        *(np.concatenate((getattr(one, name), getattr(other, name))) for name in columns)
    )


def _filled(lists: Sequence[Sequence[int]], length: int, stop_id: int) -> np.ndarray:
    """Ids [N, C], cut at the length or filled with stops."""
    filled_NC = np.full((len(lists), length), stop_id, dtype=np.int64)
    for row_C, ids in zip(filled_NC, lists, strict=True):
        row_C[: len(ids)] = ids[:length]
    return filled_NC


def _canvases(
    inputs_NC: np.ndarray,
    targets_NC: np.ndarray,
    weights_NC: np.ndarray,
    parts_NC: np.ndarray,
    slots_NC: np.ndarray,
) -> Canvases:
    return Canvases(
        inputs_NC,
        targets_NC,
        weights_NC.astype(np.float32),
        parts_NC,
        slots_NC,
        np.full(inputs_NC.shape, NOWHERE, dtype=np.int64),
        np.zeros(inputs_NC.shape, dtype=np.float32),
        np.full(len(inputs_NC), NOT_OWN, dtype=np.float32),
    )


def _slots(rows: Sequence[Corrected], length: int) -> np.ndarray:
    """Text or what follows it; which words are content is not known of a draft."""
    sizes_N1 = np.array([[len(row.labels)] for row in rows])
    return np.where(np.arange(length) < sizes_N1, 0, END_SLOT)

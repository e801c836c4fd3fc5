"""The model's own captions as targets: canvases that are masked, in complementary pairs if asked
for, and canvases of which the model fills some masks itself before the loss.

Shape suffixes: C canvas positions, N canvases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, model_validator

from training.config import Strict
from training.loss.on_policy import OnPolicy
from training.scenes.canvases import (
    CLEAN,
    COUNT_SLOT,
    END_SLOT,
    MASKED,
    NOWHERE,
    RELATION_SLOTS,
    Canvases,
)
from training.scenes.draft_canvases import Deck
from training.stickers.nearest_caption import repair
from training.stickers.templates import SLOTS, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from tokenizers import Tokenizer

    from training.correction.selection import Corrected
    from training.scenes.draft_canvases import SceneKey
    from training.stickers.graph import Scene

AGREEING = 2
"""Tokens behind a number that agree with it, such as "is large" or "are large"."""


class OwnCaptionShape(Strict):
    """Self-distillation: training on the model's own captions, those that are whole and right.

    A masked position counts 1 in the loss; every weight here is relative to that.
    """

    share: float = Field(1.0, gt=0, le=1)
    """Of the pictures, how many have canvases of own captions; the rest is as `phases` and
    `correction_share` say."""
    neighbour_relations: bool = False
    """The targets state the relations of neighbours in reading order instead of those that the
    model chose, see `training.stickers.canonical`: names are no longer mixed where several
    relations are as good."""
    mask_low: float = Field(0.3, ge=0, le=1)
    mask_high: float = Field(1.0, ge=0, le=1)
    """A masked canvas has one rate between these."""
    complementary: float = Field(0.0, ge=0, le=1)
    """Of the pictures with own captions, the share whose masked canvases come in pairs in which
    every position is masked once; they have an on-policy canvas only where one is left over."""
    numbers: float = Field(0.0, ge=0, le=1)
    """Of the masked canvases, the share that misses nothing but its numbers and what agrees with
    them, so that they can be counted in the text."""
    relations: float = Field(0.0, ge=0, le=1)
    """Of the masked canvases, the share that misses nothing but its relations' words of one kind
    (how two stickers stand, or which they are), so that they can be read off the places in the
    text. `numbers` and `relations` are at most 1 together."""
    on_policy: float = Field(0.5, ge=0, le=1)
    """Of a picture's canvases, the share of which the model fills masks itself."""
    policy_low: float = Field(0.5, ge=0, le=1)
    """Those are masked at one rate between this and 1."""
    fill_all: float = Field(0.4, ge=0, le=1)
    """Of those, the share of which every mask is filled; of the others any share is, the surest
    first."""
    wrong_weight: float = Field(2.0, ge=0)
    right_weight: float = Field(0.3, ge=0)
    end_weight: float = Field(0.15, ge=0)
    """Of the stops behind a caption."""
    entropy_weight: float = Field(0.5, ge=0)
    entropy_temperature: float = Field(0.5, gt=0)
    slot_weights: dict[Slot, float] = Field(default_factory=dict)
    """What content words count besides, by kind, such as `{count: 4}`; 1 for kinds left out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mask_low > self.mask_high:
            raise ValueError(f"mask_low {self.mask_low} is above mask_high {self.mask_high}")
        if self.numbers + self.relations > 1:
            raise ValueError(
                f"numbers {self.numbers} and relations {self.relations} exceed 1 together"
            )
        for slot, weight in self.slot_weights.items():
            if weight < 0:
                raise ValueError(f"slot_weights: {slot} must be 0 or more, got {weight}")
        return self

    def objective(self) -> OnPolicy:
        """What the objective needs of it."""
        return OnPolicy(
            wrong_weight=self.wrong_weight,
            right_weight=self.right_weight,
            entropy_weight=self.entropy_weight,
            entropy_temperature=self.entropy_temperature,
        )


class OwnCaptions:
    """Deals canvases whose targets are the model's own captions, mended."""

    def __init__(
        self,
        rows: Sequence[Corrected],
        shape: OwnCaptionShape,
        *,
        length: int,
        stop_id: int,
        mask_id: int,
        slots: Callable[[Corrected], Sequence[int]] | None = None,
    ) -> None:
        """`slots` gives the kind of every token of a row's labels, see `caption_slots`.

        Raises:
            ValueError: no row is whole and fits the canvas.
        """
        self._rows = [row for row in rows if row.whole and len(row.labels) < length]
        if not self._rows:
            raise ValueError("no caption is whole")
        self._deck = Deck([row.scene for row in self._rows])
        self._shape, self._length = shape, length
        self._stop_id, self._mask_id = stop_id, mask_id
        self._targets = np.full((len(self._rows), length), stop_id, dtype=np.int64)
        self._slots = np.full((len(self._rows), length), END_SLOT, dtype=np.int64)
        for number, row in enumerate(self._rows):
            self._targets[number, : len(row.labels)] = row.labels
            self._slots[number, : len(row.labels)] = slots(row) if slots else 0

    def __len__(self) -> int:
        return len(self._rows)

    def deal(
        self, pictures: int, per_picture: int, rng: np.random.Generator
    ) -> tuple[list[SceneKey], Canvases]:
        """Scenes, and `per_picture` canvases of each in turn, all with one wording if a scene has
        one."""
        shape = self._shape
        scenes, numbers = self._deck.deal(pictures, per_picture, rng)
        paired = rng.random(pictures) < shape.complementary
        first = np.array(numbers).reshape(pictures, per_picture)[:, 0]
        chosen = np.where(np.repeat(paired, per_picture), np.repeat(first, per_picture), numbers)
        targets_NC, slots_NC = self._targets[chosen], self._slots[chosen]
        fill_N = self._fill(paired, per_picture, rng)
        masked_NC = self._mask(slots_NC, paired, fill_N, per_picture, rng)
        inputs_NC = np.where(masked_NC, self._mask_id, targets_NC)
        parts_NC = np.where(masked_NC, MASKED, CLEAN)
        by_slot = np.array([1.0, *(shape.slot_weights.get(slot, 1.0) for slot in SLOTS)])
        weights_NC = np.where(slots_NC == END_SLOT, shape.end_weight, by_slot[slots_NC])
        weights_NC = weights_NC * np.where(masked_NC, 1.0, shape.right_weight)
        return scenes, Canvases(
            inputs_NC,
            targets_NC,
            weights_NC.astype(np.float32),
            parts_NC,
            slots_NC,
            np.full(inputs_NC.shape, NOWHERE, dtype=np.int64),
            np.zeros(inputs_NC.shape, dtype=np.float32),
            fill_N,
        )

    def _fill(self, paired: np.ndarray, per_picture: int, rng: np.random.Generator) -> np.ndarray:
        """Of each canvas the share of masks that the model fills, 0 for merely masked ones. The
        last canvases of a picture are the on-policy ones."""
        shape, pictures = self._shape, len(paired)
        wanted = (shape.on_policy * per_picture + rng.random(pictures)).astype(np.int64)
        wanted = np.where(paired, np.minimum(wanted, per_picture % 2), wanted)
        place_N = np.tile(np.arange(per_picture), pictures)
        on_policy_N = place_N >= per_picture - np.repeat(wanted, per_picture)
        whole_N = rng.random(len(place_N)) < shape.fill_all
        share_N = np.where(whole_N, 1.0, rng.random(len(place_N)))
        return np.where(on_policy_N, share_N, 0.0).astype(np.float32)

    def _mask(
        self,
        slots_NC: np.ndarray,
        paired: np.ndarray,
        fill_N: np.ndarray,
        per_picture: int,
        rng: np.random.Generator,
    ) -> np.ndarray:
        shape, count = self._shape, len(slots_NC)
        low_N1 = np.where(fill_N > 0, shape.policy_low, shape.mask_low)[:, None]
        high_N1 = np.where(fill_N > 0, 1.0, shape.mask_high)[:, None]
        rate_N1 = low_N1 + rng.random((count, 1)) * (high_N1 - low_N1)
        masked_NC = rng.random(slots_NC.shape) < rate_N1
        numbers_NC = numbers_and_agreement(slots_NC)
        pair_N = np.repeat(paired, per_picture) & (fill_N == 0)
        drill_N = rng.random(count)
        drill_N[(fill_N > 0) | pair_N] = 1.0
        counts_N = (drill_N < shape.numbers) & numbers_NC.any(axis=1)
        masked_NC[counts_N] = numbers_NC[counts_N]
        if shape.relations:
            kind_N1 = np.array(RELATION_SLOTS)[rng.integers(0, len(RELATION_SLOTS), (count, 1))]
            related_NC = slots_NC == kind_N1
            read_N = (1.0 - drill_N < shape.relations) & (drill_N < 1) & related_NC.any(axis=1)
            masked_NC[read_N] = related_NC[read_N]
        second_N = pair_N & (np.tile(np.arange(per_picture), len(paired)) % 2 == 1)
        at_N = second_N.nonzero()[0]
        masked_NC[at_N] = ~masked_NC[at_N - 1]
        result: np.ndarray = masked_NC
        return result


def numbers_and_agreement(slots_NC: np.ndarray) -> np.ndarray:
    """Positions [N, C] of numbers and of the tokens just behind them."""
    found_NC = slots_NC == COUNT_SLOT
    result_NC: np.ndarray = found_NC.copy()
    for distance in range(1, AGREEING + 1):
        result_NC[:, distance:] |= found_NC[:, :-distance]
    return result_NC


def caption_slots(labels: Sequence[int], scene: Scene, tokenizer: Tokenizer) -> list[int]:
    """Beside each token of a true caption 0 for template text or 1 + index into `SLOTS`; 0 for
    sentences that the tokenizer would cut in other tokens."""
    slots: list[int] = []
    for piece in repair(labels, scene, tokenizer):
        size = piece.last - piece.first
        found = piece.target.slots(tokenizer) if piece.target is not None else []
        slots += found if len(found) == size else [0] * size
    return slots

"""Training canvases of the sticker scenes: captions, masked and corrupted, with loss weights.

Everything of a step follows from (seed, step), so that a run resumes exactly from its step number.

Shape suffixes: B pictures, R canvases a picture, C canvas positions, N = B x R canvases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.scenes.hallucinations import hallucinate
from training.stickers.grammar import compose
from training.stickers.graph import COLUMNS, ROWS
from training.stickers.templates import SLOTS
from training.stickers.tokenizer import slot_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from training.stickers.graph import Scene

PARTS = ("clean", "masked", "replaced", "pair")
CLEAN, MASKED, REPLACED, PAIR = range(4)
END_SLOT = -1
"""Slot of the stop tokens that fill the canvas after the caption."""
RELATION_SLOTS = tuple(1 + SLOTS.index(slot) for slot in ("relation", "subject", "object"))
NAME_SLOTS = tuple(1 + SLOTS.index(slot) for slot in ("name", "subject", "object"))
PLACES = len(ROWS) * len(COLUMNS)
NOT_OWN = -1.0
"""Fill share of a canvas whose wording is not the model's own."""
NOWHERE = -100
"""Place of a token that names no sticker."""
DRILL_RELATIONS = 10
"""Relations of a drilled caption at most."""
CUT_REACH = 12
"""Positions behind a cut over which the weight of a masked token halves."""
COUNT_SLOT = 1 + SLOTS.index("count")
COUNTED = 4
"""Tokens behind a number that say what it counts, such as "are large"."""
OPENING = 16
"""Positions of an opening, about."""
COUNT_WEIGHT = 8.0
"""Weight of a number that is counted: there are one or two among a hundred masked tokens."""
CUT_WEIGHT = 3.0
"""Weight next to a cut: a cut canvas then counts about as much as any other."""


@dataclass(frozen=True, slots=True)
class Mix:
    """What share of the canvases is of which kind, and what their tokens weigh in the loss."""

    slot_masked: float = 0.5
    """Of the masked canvases, the share whose content words are masked apart from the rest."""
    cut: float = 0.0
    """Of the masked canvases, the share that is written up to some position and masked after it,
    as when decoding block by block; what lies next to the cut weighs most."""
    opening: float = 0.0
    """Of these, the share that is cut within the opening, where the counts are, instead of more
    often late than early."""
    replace: float = 0.0
    """Share of canvases that are masked and have some visible tokens replaced."""
    pair: float = 0.0
    """Share of canvases with nothing masked and one hallucination."""
    drill: float = 0.0
    """Share of canvases whose captions have many relations, and of which only one or two kinds of
    the relations' words are masked: which stickers, or how they stand to each other."""
    counts: float = 0.0
    """Share of canvases that miss nothing of their opening but its numbers, or what the last of
    them counts, and all behind it: how many are large or small must be counted in the picture."""
    replace_low: float = 0.03
    replace_high: float = 0.12
    content_weight: float = 3.0
    relation_weight: float = 1.0
    """Of the content words of relations, times `content_weight`."""
    end_weight: float = 0.15
    clean_weight: float = 0.0
    """Weight of visible, untouched tokens: what keeps a right token right while refining."""
    replaced_weight: float = 1.0
    place_weight: float = 0.0
    """Weight, on a visible token of a sticker's name, of telling where that sticker is."""
    unmasked: bool = False
    """Nothing is masked."""


@dataclass(frozen=True, slots=True)
class Canvases:
    """A batch: what the model sees, what it should say and how much that counts."""

    inputs_NC: np.ndarray
    targets_NC: np.ndarray
    weights_NC: np.ndarray
    parts_NC: np.ndarray
    """Index into PARTS."""
    slots_NC: np.ndarray
    """0 for template text, 1 + index into SLOTS for content, END_SLOT after the caption."""
    places_NC: np.ndarray
    """Of a visible token of a sticker's name, which of the PLACES the sticker is at, row by row;
    NOWHERE elsewhere."""
    place_weights_NC: np.ndarray
    fill_N: np.ndarray
    """Share of a canvas's masks that the model fills itself before the loss, float32; NOT_OWN
    where the target is not the model's own wording, which also has no entropy term."""


def part_weights(
    parts_NC: np.ndarray, mix: Mix, nearness_NC: np.ndarray | float = 1.0
) -> np.ndarray:
    """What tokens count by part; masked ones also by how few they are and by `nearness_NC`."""
    masked_NC = parts_NC == MASKED
    share_N1 = np.maximum(masked_NC.mean(axis=1, keepdims=True), 0.3)
    by_part = np.array([mix.clean_weight, 1.0, mix.replaced_weight, mix.replaced_weight])
    weights_NC: np.ndarray = by_part[parts_NC]
    return np.where(masked_NC, nearness_NC * weights_NC / share_N1, weights_NC)


def _counted(slots_NC: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Masks of an opening's numbers, or of the words that say what the last one counts, and of all
    behind them; and what these weigh."""
    at_C = np.arange(slots_NC.shape[1])
    numbers_NC = slots_NC == COUNT_SLOT
    # Canvases without a number are masked whole.
    last_N1 = np.where(numbers_NC, at_C, -1 - COUNTED).max(axis=1, keepdims=True)
    counted_NC = (at_C > last_N1) & (at_C <= last_N1 + COUNTED)
    asked_NC = np.where(rng.random((len(slots_NC), 1)) < 0.3, counted_NC, numbers_NC)
    behind_NC = np.maximum(0, at_C - last_N1 - COUNTED)
    nearness_NC = np.where(asked_NC, COUNT_WEIGHT, np.exp2(-behind_NC / CUT_REACH))
    return asked_NC | (behind_NC > 0), nearness_NC


class CanvasBuilder:
    """Writes and corrupts the captions of scenes."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        names: Sequence[str],
        *,
        length: int,
        mask_id: int,
        stop_id: int,
        special_ids: int,
    ) -> None:
        """`special_ids` is how many ids, from 0 on, are special: never a random replacement."""
        self.tokenizer = tokenizer
        self.names = tuple(names)
        self.length = length
        self.mask_id = mask_id
        self.stop_id = stop_id
        self.word_ids = (special_ids, tokenizer.get_vocab_size())

    def build(
        self, scenes: Sequence[Scene], per_scene: int, mix: Mix, rng: np.random.Generator
    ) -> Canvases:
        """Canvases of each scene in turn, `per_scene` of them with different wordings."""
        count = len(scenes) * per_scene
        targets_NC = np.full((count, self.length), self.stop_id, dtype=np.int64)
        slots_NC = np.full((count, self.length), END_SLOT, dtype=np.int64)
        inputs_NC = targets_NC.copy()
        places_NC = np.full_like(targets_NC, NOWHERE)
        pair_N = rng.random(count) < mix.pair
        drill_N = ~pair_N & (rng.random(count) < mix.drill) if mix.drill else np.zeros_like(pair_N)
        pair_NC = np.zeros((count, self.length), dtype=bool)
        for row in range(count):
            scene = scenes[row // per_scene]
            caption = compose(scene, rng, relations=DRILL_RELATIONS if drill_N[row] else None)
            ids, slots, owners = (
                column[: self.length - 1] for column in slot_ids(self.tokenizer, caption)
            )
            targets_NC[row, : len(ids)] = ids
            inputs_NC[row, : len(ids)] = ids
            slots_NC[row, : len(ids)] = slots
            places_NC[row, : len(ids)] = [
                scene.stickers[owner].place if slot in NAME_SLOTS else NOWHERE
                for slot, owner in zip(slots, owners, strict=True)
            ]
            if pair_N[row]:
                pair = hallucinate(scene, caption, self.tokenizer, self.names, rng, errors=1)
                if pair is None:
                    pair_N[row] = False
                    continue
                wrong = pair.org_ids[: self.length - 1]
                inputs_NC[row, : len(wrong)] = wrong
                pair_NC[row] = inputs_NC[row] != targets_NC[row]
        masked_NC, nearness_NC = self._mask(slots_NC, mix, rng)
        masked_NC[pair_N | mix.unmasked] = False
        masked_NC[drill_N] = self._drill(slots_NC[drill_N], rng)
        nearness_NC[drill_N] = 1.0
        if mix.counts:
            counts_N = ~pair_N & ~drill_N & (rng.random(count) < mix.counts)
            masked_NC[counts_N], nearness_NC[counts_N] = _counted(slots_NC[counts_N], rng)
        replace_N = ~pair_N & ~drill_N & (rng.random(count) < mix.replace / max(1e-9, 1 - mix.pair))
        replaced_NC = self._replace(
            inputs_NC, targets_NC, replace_N, masked_NC, mix, rng, per_scene
        )
        inputs_NC[masked_NC] = self.mask_id

        parts_NC = np.zeros((count, self.length), dtype=np.int64)
        parts_NC[masked_NC] = MASKED
        parts_NC[replaced_NC] = REPLACED
        parts_NC[pair_NC] = PAIR
        weights_NC = part_weights(parts_NC, mix, nearness_NC)
        by_slot = np.where(slots_NC > 0, mix.content_weight, 1.0)
        by_slot[np.isin(slots_NC, RELATION_SLOTS)] *= mix.relation_weight
        by_slot = np.where(slots_NC == END_SLOT, mix.end_weight, by_slot)
        places_NC[inputs_NC != targets_NC] = NOWHERE
        return Canvases(
            inputs_NC,
            targets_NC,
            (weights_NC * by_slot).astype(np.float32),
            parts_NC,
            slots_NC,
            places_NC,
            np.where(places_NC == NOWHERE, 0.0, mix.place_weight).astype(np.float32),
            np.full(count, NOT_OWN, dtype=np.float32),
        )

    def _mask(
        self, slots_NC: np.ndarray, mix: Mix, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """What is masked, and what that weighs.

        One rate t ~ U(.05, 1) for a canvas; or content and template at rates of their own; or a
        cut at a position of the caption, with little masked before it and most things after.
        """
        count, length = slots_NC.shape
        draws_NC = rng.random(slots_NC.shape)
        uniform_N1 = rng.uniform(0.05, 1.0, (count, 1))
        content_N1 = np.where(rng.random((count, 1)) < 0.5, 1.0, rng.uniform(0.1, 1.0, (count, 1)))
        template_N1 = rng.random((count, 1))
        apart_N1 = rng.random((count, 1)) < mix.slot_masked
        rate_NC = np.where(slots_NC > 0, content_N1, template_N1)
        rate_NC = np.where(apart_N1, rate_NC, uniform_N1)
        nearness_NC = np.ones(slots_NC.shape)
        if mix.cut:
            cut_N1 = rng.random((count, 1)) < mix.cut
            written_N = (slots_NC != END_SLOT).sum(axis=1)
            # More often late than early: relations, the hardest part, come last.
            cut_N = np.floor(np.sqrt(rng.random(count)) * (written_N + 1))
            if mix.opening:
                early_N = rng.random(count) < mix.opening
                cut_N = np.where(early_N, rng.integers(0, OPENING, count), cut_N)
            distance_NC = np.arange(length) - cut_N[:, None]
            before_N1 = np.maximum(0, rng.uniform(-0.2, 0.2, (count, 1)))
            after_N1 = np.minimum(1, rng.uniform(0.5, 1.5, (count, 1)))
            by_side_NC = np.where(distance_NC < 0, before_N1, after_N1)
            near_NC = CUT_WEIGHT * np.exp2(-np.maximum(0, distance_NC) / CUT_REACH)
            rate_NC = np.where(cut_N1, by_side_NC, rate_NC)
            nearness_NC = np.where(cut_N1, near_NC, nearness_NC)
        masked: np.ndarray = draws_NC < rate_NC
        return masked, nearness_NC

    def _drill(self, slots_NC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The words of relations of one kind in most canvases, of two in the others."""
        count = len(slots_NC)
        kinds_N1 = 1 + (rng.random((count, 1)) < 0.3)
        hidden_NK = rng.random((count, len(RELATION_SLOTS))).argsort(axis=1) < kinds_N1
        masked_NC = np.zeros(slots_NC.shape, dtype=bool)
        for kind, slot in enumerate(RELATION_SLOTS):
            masked_NC |= hidden_NK[:, [kind]] & (slots_NC == slot)
        return masked_NC

    def _replace(
        self,
        inputs_NC: np.ndarray,
        targets_NC: np.ndarray,
        replace_N: np.ndarray,
        masked_NC: np.ndarray,
        mix: Mix,
        rng: np.random.Generator,
        per_scene: int,
    ) -> np.ndarray:
        """Replace visible tokens in place: a third by the same position of another wording of the
        same scene, a fifth by the token before, the rest at random. Returns what differs now."""
        count = len(inputs_NC)
        rate_N1 = rng.uniform(mix.replace_low, mix.replace_high, (count, 1))
        chosen_NC = replace_N[:, None] & ~masked_NC & (rng.random(inputs_NC.shape) < rate_N1)
        kind_NC = rng.random(inputs_NC.shape)
        sibling_N = np.arange(count).reshape(-1, per_scene)
        other_NC = targets_NC[np.roll(sibling_N, 1, axis=1).ravel()]
        before_NC = np.concatenate((targets_NC[:, :1], targets_NC[:, :-1]), axis=1)
        pool = targets_NC.ravel()
        random_NC = np.where(
            rng.random(inputs_NC.shape) < 0.5,
            rng.integers(*self.word_ids, inputs_NC.shape),
            pool[rng.integers(0, len(pool), inputs_NC.shape)],
        )
        new_NC = np.where(kind_NC < 1 / 3, other_NC, random_NC)
        new_NC = np.where(kind_NC > 0.8, before_NC, new_NC)
        np.copyto(inputs_NC, new_NC, where=chosen_NC)
        replaced: np.ndarray = chosen_NC & (inputs_NC != targets_NC)
        return replaced

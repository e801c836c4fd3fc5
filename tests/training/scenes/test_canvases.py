"""Training canvases: what is masked, replaced and weighed, and that a step repeats exactly."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from tokenizers import Tokenizer

from training.loss.official import Defect
from training.scenes.canvases import (
    COUNT_SLOT,
    COUNTED,
    END_SLOT,
    MASKED,
    NAME_SLOTS,
    NOWHERE,
    PAIR,
    RELATION_SLOTS,
    REPLACED,
    CanvasBuilder,
    Canvases,
    Mix,
)
from training.scenes.paper_losses import paper_canvases
from training.stickers.atlas import Atlas
from training.stickers.grammar import compose
from training.stickers.sample import sample_scene
from training.stickers.tokenizer import SPECIAL_TOKENS, train_tokenizer

MASK_ID, STOP_ID = 2, 5
ATLAS = Atlas.load()
SCENES = [sample_scene(seed, ATLAS) for seed in range(48)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    rng = np.random.default_rng(0)
    return train_tokenizer([compose(scene, rng).text for scene in SCENES], ATLAS.names, 820)


@pytest.fixture(scope="module")
def builder(tokenizer: Tokenizer) -> CanvasBuilder:
    return CanvasBuilder(
        tokenizer,
        ATLAS.names,
        length=128,
        mask_id=MASK_ID,
        stop_id=STOP_ID,
        special_ids=len(SPECIAL_TOKENS),
    )


def build(builder: CanvasBuilder, mix: Mix, seed: int = 0) -> Canvases:
    return builder.build(SCENES, 2, mix, np.random.default_rng(seed))


def test_the_same_seed_gives_the_same_canvases(builder: CanvasBuilder) -> None:
    mix = Mix(replace=0.4, pair=0.2, clean_weight=0.1)
    first, again, other = build(builder, mix), build(builder, mix), build(builder, mix, seed=1)
    assert np.array_equal(first.inputs_NC, again.inputs_NC)
    assert np.array_equal(first.weights_NC, again.weights_NC)
    assert not np.array_equal(first.inputs_NC, other.inputs_NC)


def test_targets_are_captions_that_end_in_stop_tokens(
    builder: CanvasBuilder, tokenizer: Tokenizer
) -> None:
    canvases = build(builder, Mix())
    for targets_C, slots_C in zip(canvases.targets_NC, canvases.slots_NC, strict=True):
        words = slots_C != END_SLOT
        assert (targets_C[~words] == STOP_ID).all()
        assert (~words).any()
        text = tokenizer.decode(targets_C[words].tolist())
        assert text.endswith(".")
    first, second = canvases.targets_NC[:2]
    assert not np.array_equal(first, second), "two wordings of one scene are the same"


def test_without_corruption_only_masked_positions_differ_and_weigh(builder: CanvasBuilder) -> None:
    canvases = build(builder, Mix())
    masked_NC = canvases.parts_NC == MASKED
    assert (canvases.inputs_NC[masked_NC] == MASK_ID).all()
    assert np.array_equal(canvases.inputs_NC[~masked_NC], canvases.targets_NC[~masked_NC])
    assert (canvases.weights_NC[masked_NC] > 0).all()
    assert (canvases.weights_NC[~masked_NC] == 0).all()


def test_content_and_end_tokens_have_their_weights(builder: CanvasBuilder) -> None:
    mix = Mix(content_weight=3.0, end_weight=0.15, slot_masked=0.0)
    canvases = build(builder, mix)
    masked_NC = canvases.parts_NC == MASKED
    for weights_C, slots_C, masked_C in zip(
        canvases.weights_NC, canvases.slots_NC, masked_NC, strict=True
    ):
        unit = 1 / max(masked_C.mean(), 0.3)
        for chosen_C, expected in (
            (slots_C > 0, 3.0),
            (slots_C == 0, 1.0),
            (slots_C == END_SLOT, 0.15),
        ):
            assert weights_C[chosen_C & masked_C] == pytest.approx(expected * unit, rel=1e-5)


def test_pairs_are_unmasked_captions_with_few_wrong_tokens(builder: CanvasBuilder) -> None:
    canvases = build(builder, Mix(pair=1.0))
    wrong_NC = canvases.parts_NC == PAIR
    assert not (canvases.parts_NC == MASKED).all(axis=1).any()
    made_N = wrong_NC.any(axis=1)
    assert made_N.mean() > 0.9
    assert (canvases.inputs_NC[made_N] != MASK_ID).all()
    assert wrong_NC[made_N].sum(axis=1).max() <= 12
    assert (canvases.inputs_NC[wrong_NC] != canvases.targets_NC[wrong_NC]).all()
    assert (canvases.weights_NC[made_N] > 0).sum() == wrong_NC.sum()


def test_replacements_are_visible_words_at_about_the_rate_asked(builder: CanvasBuilder) -> None:
    mix = Mix(replace=1.0, replace_low=0.1, replace_high=0.1, clean_weight=0.1)
    canvases = build(builder, mix)
    replaced_NC = canvases.parts_NC == REPLACED
    visible_NC = canvases.parts_NC != MASKED
    assert (canvases.inputs_NC[replaced_NC] != canvases.targets_NC[replaced_NC]).all()
    assert (canvases.inputs_NC[replaced_NC] != MASK_ID).all()
    assert 0.05 < replaced_NC.sum() / visible_NC.sum() < 0.1
    assert canvases.inputs_NC[replaced_NC].min() >= len(SPECIAL_TOKENS) - 1
    assert (canvases.weights_NC > 0).all()


def test_a_caption_longer_than_the_canvas_keeps_a_stop_token(tokenizer: Tokenizer) -> None:
    short = CanvasBuilder(
        tokenizer, ATLAS.names, length=20, mask_id=MASK_ID, stop_id=STOP_ID, special_ids=6
    )
    canvases = short.build(SCENES[:4], 2, replace(Mix(), pair=0.5), np.random.default_rng(0))
    assert canvases.targets_NC.shape == (8, 20)
    assert (canvases.targets_NC[:, -1] == STOP_ID).all()


def test_a_cut_canvas_is_written_on_one_side_and_weighs_most_next_to_the_cut(
    builder: CanvasBuilder,
) -> None:
    got = build(builder, Mix(cut=1.0, slot_masked=0.0, content_weight=1.0, end_weight=1.0))
    masked = got.inputs_NC == MASK_ID
    best = []
    for row, weights in zip(masked, got.weights_NC, strict=True):
        # The cut that explains the row best: few masks before it, few written words after it.
        before = np.concatenate(([0], np.cumsum(row)))
        after = np.concatenate((np.cumsum(~row[::-1])[::-1], [0]))
        cut = int(np.argmin(before + after))
        best.append((before + after)[cut])
        heavy = np.flatnonzero(weights == weights.max())
        assert row[heavy].all()
        if row[cut:].sum() > 1:
            behind = weights[cut:][row[cut:]]
            assert (np.diff(behind) <= 0).all()
            assert behind[-1] < behind[0]
    assert np.median(best) < 0.15 * got.inputs_NC.shape[1]


def test_a_drilled_canvas_has_many_relations_and_misses_only_words_of_them(
    builder: CanvasBuilder,
) -> None:
    got, usual = build(builder, Mix(drill=1.0, replace=0.5)), build(builder, Mix())
    relation = RELATION_SLOTS[0]
    assert (got.slots_NC == relation).sum() > 2 * (usual.slots_NC == relation).sum()
    missing_NC = got.inputs_NC == MASK_ID
    assert np.array_equal(got.inputs_NC != got.targets_NC, missing_NC)
    kinds = set()
    for missing, slots in zip(missing_NC, got.slots_NC, strict=True):
        hidden = frozenset(slots[missing].tolist())
        assert hidden <= set(RELATION_SLOTS)
        assert np.array_equal(missing, np.isin(slots, list(hidden)))
        kinds.add(hidden)
    assert {len(kind) for kind in kinds} == {1, 2}
    assert len(kinds) == 6


def test_counts_are_asked_of_the_picture_alone(builder: CanvasBuilder) -> None:
    canvases = build(builder, Mix(counts=1.0, content_weight=1.0))
    masked_NC = canvases.parts_NC == MASKED
    by_number = 0
    for slots_C, masked_C, weights_C in zip(
        canvases.slots_NC, masked_NC, canvases.weights_NC, strict=True
    ):
        numbers_C = slots_C == COUNT_SLOT
        last = np.flatnonzero(numbers_C)[-1]
        end = last + 1 + COUNTED
        assert masked_C[end:].all(), "all behind the opening"
        asked = np.flatnonzero(masked_C[:end])
        if masked_C[last]:
            by_number += 1
            assert asked.tolist() == np.flatnonzero(numbers_C).tolist()
        else:
            assert asked.tolist() == list(range(last + 1, end))
        assert weights_C[asked].min() > 4 * weights_C[end:].max()
    assert 0.5 * len(masked_NC) < by_number < 0.9 * len(masked_NC)


def test_places_are_told_of_visible_names_alone(
    builder: CanvasBuilder, tokenizer: Tokenizer
) -> None:
    got = build(builder, Mix(replace=0.5, pair=0.2, place_weight=3.0))
    told_NC = got.places_NC != NOWHERE
    named_NC = np.isin(got.slots_NC, NAME_SLOTS)
    assert np.array_equal(told_NC, named_NC & (got.inputs_NC == got.targets_NC))
    assert np.array_equal(got.place_weights_NC, np.where(told_NC, np.float32(3), np.float32(0)))
    whole = build(builder, Mix(unmasked=True))
    for row, scene in enumerate(scene for scene in SCENES for _ in range(2)):
        for slot in NAME_SLOTS:
            chosen = whole.slots_NC[row] == slot
            said = tokenizer.decode(whole.targets_NC[row][chosen].tolist())
            for sticker in scene.stickers:
                if sticker.name in said:
                    assert sticker.place in whole.places_NC[row][chosen]


def test_defects_of_the_samples_do_what_they_are_called(builder: CanvasBuilder) -> None:
    def canvases(*defects: Defect) -> Canvases:
        mix, rng = Mix(pair=1.0, replace=0.0), np.random.default_rng(0)
        return paper_canvases(builder, SCENES, 2, mix, rng, "default", defects)

    mended = canvases()
    wrong = mended.parts_NC == PAIR
    assert wrong.any(axis=1).all()
    assert (mended.inputs_NC != mended.targets_NC)[wrong].all()

    # A pair trains nothing but what is flagged, so padding shows in ordinary samples alone.
    rng = np.random.default_rng(0)
    padded = paper_canvases(builder, SCENES, 2, Mix(), rng, "default", ["trained_padding"])
    behind = padded.slots_NC == END_SLOT
    behind &= np.cumsum(behind, axis=1) > 1
    assert (padded.weights_NC[behind] > 0).any()

    lost = canvases("lost_pairs")
    ordinary_N = ~(lost.parts_NC == PAIR).any(axis=1)
    assert 0 < ordinary_N.sum() < len(ordinary_N)
    learnt_wrong = lost.targets_NC[ordinary_N] == mended.inputs_NC[ordinary_N]
    assert learnt_wrong.all()
    assert (lost.targets_NC[ordinary_N] != mended.targets_NC[ordinary_N]).any(axis=1).all()
    assert np.array_equal(lost.targets_NC[~ordinary_N], mended.targets_NC[~ordinary_N])

    shifted = canvases("shifted_flags")
    moved_N = ((shifted.parts_NC == PAIR) != wrong).any(axis=1)
    assert 0 < moved_N.sum() < len(moved_N)
    assert np.array_equal(shifted.targets_NC, mended.targets_NC)


@pytest.mark.parametrize("compat", ["default", "official"])
def test_with_the_papers_losses_only_the_official_one_trains_what_follows_the_stop(
    builder: CanvasBuilder, compat: Literal["default", "official"]
) -> None:
    mix = Mix(pair=0.3, replace=0.45)
    got = paper_canvases(builder, SCENES, 2, mix, np.random.default_rng(0), compat)
    behind = got.slots_NC == END_SLOT
    behind &= np.cumsum(behind, axis=1) > 1
    assert (got.weights_NC[behind] > 0).any() == (compat == "official")
    trained = got.weights_NC > 0
    assert (got.inputs_NC == MASK_ID)[trained & (got.parts_NC == MASKED)].all()
    for part in (REPLACED, PAIR):
        chosen = got.parts_NC == part
        assert chosen.any()
        assert (got.inputs_NC != got.targets_NC)[chosen].all()

"""Wrong captions: of equal length, wrong indeed, and wrong in every kind of place."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_samples import HAND_SCENE, NAMES, random_scene, sample_tokenizer

from training.scenes.hallucinations import Pair, conflict, hallucinate
from training.stickers.grammar import Caption, compose
from training.stickers.parse import parse
from training.stickers.score import score
from training.stickers.templates import SLOTS
from training.stickers.tokenizer import slot_ids

SEEDS = st.integers(0, 2**32 - 1)


def wrong_caption(seed: int, errors: int = 1) -> tuple[Caption, Pair]:
    """A caption of a random scene and its corruption, which always exists for these scenes."""
    rng = np.random.default_rng(seed)
    scene = random_scene(seed)
    caption = compose(scene, rng)
    pair = hallucinate(scene, caption, sample_tokenizer(), NAMES, rng, errors)
    assert pair is not None
    return caption, pair


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 4))
def test_a_pair_has_one_length_and_knows_what_differs(seed: int, errors: int) -> None:
    caption, pair = wrong_caption(seed, errors)
    assert len(pair.org_ids) == len(pair.target_ids)
    assert sample_tokenizer().decode(pair.target_ids) == caption.text
    differs = np.not_equal(pair.org_ids, pair.target_ids)
    assert pair.changed == differs.nonzero()[0].tolist() != []


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 4))
def test_hallucinations_are_wrong(seed: int, errors: int) -> None:
    _, pair = wrong_caption(seed, errors)
    result = score(random_scene(seed), sample_tokenizer().decode(pair.org_ids), NAMES)
    assert result.perfect == 0
    assert result.factuality < 1 or result.fluency < 1


def test_one_error_is_one_wrong_sentence_and_content_errors_stay_fluent() -> None:
    for seed in range(200):
        caption, pair = wrong_caption(seed)
        before = parse(caption.text, NAMES)
        after = parse(sample_tokenizer().decode(pair.org_ids), NAMES)
        changed = [new for old, new in zip(before, after, strict=True) if old.text != new.text]
        assert len(changed) == 1
        kinds = slot_ids(sample_tokenizer(), caption)[1]
        agreement_only = not any(kinds[i] for i in pair.changed)
        assert (changed[0].facts is None) == agreement_only


def test_every_kind_of_content_and_agreement_is_hit() -> None:
    hit: Counter[str] = Counter()
    for seed in range(600):
        caption, pair = wrong_caption(seed)
        kinds = slot_ids(sample_tokenizer(), caption)[1]
        slots: set[str] = {SLOTS[kinds[i] - 1] for i in pair.changed if kinds[i]}
        hit.update(slots or {"agreement"})
        if slots == {"subject", "object"}:
            hit.update({"swap"})
    assert set(hit) == {*SLOTS, "agreement", "swap"}
    assert min(hit.values()) >= 5


def test_more_errors_change_more() -> None:
    changed = [
        np.mean([len(wrong_caption(seed, errors)[1].changed) for seed in range(60)])
        for errors in (1, 2, 4)
    ]
    assert changed[0] < changed[1] < changed[2]


def test_a_hallucinated_object_is_not_in_the_scene() -> None:
    for seed in range(200):
        caption, pair = wrong_caption(seed)
        kinds = slot_ids(sample_tokenizer(), caption)[1]
        if any(kinds[i] == 1 + SLOTS.index("name") for i in pair.changed):
            text = sample_tokenizer().decode(pair.org_ids)
            assert score(random_scene(seed), text, NAMES).chair_i > 0


def test_words_follow_a_number_that_was_one() -> None:
    stickers = tuple(replace(each, size="small") for each in HAND_SCENE.stickers[1:])
    scene = replace(HAND_SCENE, stickers=(replace(HAND_SCENE.stickers[0], size="large"), *stickers))
    tokenizer = sample_tokenizer()
    seen = set()
    for seed in range(1500):
        rng = np.random.default_rng(seed)
        caption = compose(scene, rng)
        if "ne large sticker" not in caption.text and "one is large" not in caption.text:
            continue
        pair = hallucinate(scene, caption, tokenizer, NAMES, rng)
        assert pair is not None
        opening = tokenizer.decode(pair.org_ids).split(".")[0]
        seen.add(opening.replace("striped", "").split("lie")[0].split("backdrop,")[-1].strip())
    assert {"Two large stickers and three small stickers", "three are large"} <= seen


def test_the_same_generator_makes_the_same_pair() -> None:
    assert wrong_caption(5) == wrong_caption(5)


def test_nothing_to_make_wrong_is_no_pair() -> None:
    rng = np.random.default_rng(0)
    assert hallucinate(HAND_SCENE, Caption("Hm.", ()), sample_tokenizer(), NAMES, rng) is None


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_a_conflict_takes_tokens_of_another_wording_in_place(seed: int) -> None:
    scene = random_scene(seed)
    caption = compose(scene, np.random.default_rng(seed))
    tokenizer = sample_tokenizer()
    pair = conflict(scene, caption, tokenizer, np.random.default_rng(seed + 1), share=0.2)
    other = tokenizer.encode(compose(scene, np.random.default_rng(seed + 1)).text).ids
    if pair is None:
        return
    assert pair.target_ids == tokenizer.encode(caption.text).ids
    assert len(pair.org_ids) == len(pair.target_ids)
    differs = np.not_equal(pair.org_ids, pair.target_ids)
    assert pair.changed == differs.nonzero()[0].tolist() != []
    assert all(pair.org_ids[i] == other[i] for i in pair.changed)


@pytest.mark.parametrize(("share", "low", "high"), [(0.08, 0.02, 0.08), (0.5, 0.3, 0.5)])
def test_conflicts_change_about_the_share_asked_for(share: float, low: float, high: float) -> None:
    changed = total = 0
    for seed in range(100):
        scene = random_scene(seed)
        rng = np.random.default_rng(seed)
        pair = conflict(scene, compose(scene, rng), sample_tokenizer(), rng, share)
        if pair is not None:
            changed += len(pair.changed)
            total += len(pair.target_ids)
    assert low < changed / total < high


def test_a_share_of_nothing_is_no_pair() -> None:
    caption = compose(HAND_SCENE, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    assert conflict(HAND_SCENE, caption, sample_tokenizer(), rng, share=0.0) is None

"""Repairing captions of scenes, and the distribution of their errors."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_samples import HAND_SCENE, NAMES, random_scene, sample_tokenizer

from training.scenes.canvases import CanvasBuilder, Mix
from training.scenes.errors import ERRORS, error_table, errors_of, plot, synthetic
from training.scenes.hallucinations import hallucinate
from training.stickers.grammar import compose
from training.stickers.nearest_caption import repair
from training.stickers.score import score
from training.stickers.tokenizer import END_OF_TURN, MASK, SPECIAL_TOKENS

OPENING = "There are four stickers on a striped sky blue backdrop."
FOX = "A small fox sits on a red star-shaped plate at the top left."
UMBRELLA = "The umbrella at the top right is large, on a round orange plate."
APPLE = "In the middle is a small apple on a blue oval plate."
OWL = "A large owl sits on a green square plate at the bottom right."
ABOVE = "The umbrella is above the owl."
LEFT = "You see the fox left of the apple."
RIGHT_CAPTION = (OPENING, FOX, UMBRELLA, APPLE, OWL, ABOVE, LEFT)


def encode(*sentences: str) -> list[int]:
    ids: list[int] = sample_tokenizer().encode(" ".join(sentences), add_special_tokens=False).ids
    return ids


def mended(ids: list[int]) -> str:
    """A caption with every piece replaced by what it should be."""
    out = list(ids)
    for piece in repair(ids, HAND_SCENE, sample_tokenizer()):
        out[piece.first : piece.last] = piece.labels
    text: str = sample_tokenizer().decode(out)
    return text


def with_sentence(old: str, new: str) -> list[int]:
    return encode(*(new if sentence == old else sentence for sentence in RIGHT_CAPTION))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_a_right_caption_has_no_errors(seed: int) -> None:
    scene = random_scene(seed)
    ids = encode(compose(scene, np.random.default_rng(seed)).text)
    assert errors_of(scene, ids, sample_tokenizer()) == []


def test_pieces_cover_a_draft_in_order_whatever_it_is() -> None:
    rng = np.random.default_rng(0)
    for length in (0, 1, 7, 60):
        ids = rng.integers(len(SPECIAL_TOKENS), 570, length).tolist()
        pieces = repair(ids, HAND_SCENE, sample_tokenizer())
        edges = [(piece.first, piece.last) for piece in pieces]
        assert [first for first, _ in edges] + [length] == [0] + [last for _, last in edges]


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        (FOX, FOX.replace("red", "blue"), ["colour"]),
        (FOX, FOX.replace("small", "large"), ["size"]),
        (FOX, FOX.replace("star", "diamond"), ["shape"]),
        (OWL, OWL.replace("right", "left"), ["position"]),
        (OWL, OWL.replace("owl", "lion"), ["name"]),
        (OPENING, OPENING.replace("four", "five"), ["count"]),
        (OPENING, OPENING.replace("striped", "dotted"), ["pattern"]),
        (ABOVE, ABOVE.replace("above", "below"), ["relation"]),
        (ABOVE, ABOVE.replace("The umbrella", "The pizza"), ["subject"]),
        (APPLE, APPLE.replace("an", "a").replace("a small", "an small"), ["agreement"]),
        (FOX, FOX.replace("sits on", "sits sits"), ["repetition"]),
        (FOX, FOX.replace(" sits on", " holds on"), ["template"]),
        (LEFT, ABOVE, ["repetition", "omission"]),
        (OWL, "Hm.", ["hopeless", "omission"]),
        (FOX, FOX.replace("red", "blue").replace("star", "diamond"), ["colour", "shape"]),
    ],
)
def test_errors_are_told_apart(old: str, new: str, kinds: list[str]) -> None:
    assert old != new
    assert errors_of(HAND_SCENE, with_sentence(old, new), sample_tokenizer()) == kinds


def test_what_is_left_out_is_an_omission() -> None:
    assert errors_of(HAND_SCENE, encode(OPENING, FOX), sample_tokenizer()) == ["omission"] * 5


def test_a_repair_changes_the_wrong_words_alone() -> None:
    wrong = with_sentence(FOX, FOX.replace("red", "blue"))
    assert mended(wrong) == " ".join(RIGHT_CAPTION)


def test_two_sentences_run_together_are_parted_again() -> None:
    """A comma for the full stop: no sentence of that length is true, but two are."""
    wrong = encode(*RIGHT_CAPTION)
    stop = encode(OPENING, FOX).index(encode("x.")[-1], len(encode(OPENING)))
    wrong[stop] = encode("x,")[-1]
    assert mended(wrong) == " ".join(RIGHT_CAPTION)


def test_a_second_sentence_about_one_thing_becomes_the_one_left_out() -> None:
    """Its nearest true sentence is about the fox too, but that has been said."""
    wrong = with_sentence(OWL, FOX.replace("star-shaped", "square"))
    assert mended(wrong) == " ".join(RIGHT_CAPTION)


def test_a_sentence_of_another_length_gets_the_parts_that_fit() -> None:
    """No true sentence is as long as this one with its longer name, but its colour can be right."""
    wrong = with_sentence(FOX, FOX.replace("fox", "elephant").replace("red", "blue"))
    assert mended(wrong) == " ".join(RIGHT_CAPTION).replace("small fox", "small elephant")
    assert errors_of(HAND_SCENE, wrong, sample_tokenizer()) == ["hopeless"]


def test_most_errors_of_any_kind_can_be_mended() -> None:
    rng = np.random.default_rng(1)
    perfect = 0
    for seed in range(12):
        scene = random_scene(seed)
        pair = hallucinate(scene, compose(scene, rng), sample_tokenizer(), NAMES, rng, errors=2)
        assert pair is not None
        out = list(pair.org_ids)
        for piece in repair(pair.org_ids, scene, sample_tokenizer()):
            out[piece.first : piece.last] = piece.labels
        perfect += score(scene, sample_tokenizer().decode(out), NAMES).factuality == 1
    assert perfect >= 11


def builder() -> CanvasBuilder:
    tokenizer = sample_tokenizer()
    return CanvasBuilder(
        tokenizer,
        NAMES,
        length=128,
        mask_id=SPECIAL_TOKENS.index(MASK),
        stop_id=SPECIAL_TOKENS.index(END_OF_TURN),
        special_ids=len(SPECIAL_TOKENS),
    )


def test_synthetic_captions_hold_the_errors_of_their_mix_and_no_masks() -> None:
    scenes = [random_scene(seed, 2) for seed in range(4)]
    rng = np.random.default_rng(0)
    pairs = synthetic(builder(), scenes, Mix(pair=1.0), rng)
    replaced = synthetic(builder(), scenes, Mix(replace=1.0), rng)
    clean = synthetic(builder(), scenes, Mix(), rng)
    assert len(pairs) == len(replaced) == 8
    mask = sample_tokenizer().token_to_id(MASK)
    assert not any(mask in ids for _, ids in pairs + replaced + clean)
    table = error_table({"pairs": pairs, "replaced": replaced, "clean": clean}, sample_tokenizer())
    totals: Counter[str] = Counter()
    for row in table:
        totals[row.source] += row.count
        assert row.per_caption == row.count / 8
    assert totals["clean"] == 0
    assert 8 <= totals["pairs"] < totals["replaced"]
    for source in ("pairs", "replaced"):
        assert sum(row.share for row in table if row.source == source) == pytest.approx(1)


def test_the_table_is_drawn(tmp_path: Path) -> None:
    wrong = with_sentence(FOX, FOX.replace("red", "blue"))
    rows = error_table({"drafts": [(HAND_SCENE, wrong)], "none": []}, sample_tokenizer())
    assert [row.kind for row in rows] == [*ERRORS, *ERRORS]
    assert [(row.kind, row.count) for row in rows if row.count] == [("colour", 1)]
    plot(rows, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 10_000

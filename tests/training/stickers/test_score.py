"""The evaluator on captions with planted errors of every kind."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_samples import HAND_SCENE, NAMES, random_scene, sticker

from training.stickers.grammar import compose
from training.stickers.graph import Scene
from training.stickers.score import METRICS, Score, judged, score, summarise

CAPTION = (
    "There are four stickers on a striped sky blue backdrop. "
    "A small fox sits on a red star-shaped plate at the top left. "
    "In the upper right is a large umbrella on an orange round plate. "
    "A blue oval plate in the middle holds a small apple. "
    "The owl at the bottom right is large, on a square green plate. "
    "The fox is left of the umbrella. "
    "Below the apple is the owl."
)
"""A perfect caption of HAND_SCENE, 7 sentences: 5 facts a sticker, 3 of the scene, 2 relations."""

FOX = "A small fox sits on a red star-shaped plate at the top left."
APPLE = "A blue oval plate in the middle holds a small apple."
PERFECT = Score(coverage=1, factuality=1, chair_i=0, object_recall=1, fluency=1, perfect=1)
ONE_FACT_WRONG = {"coverage": 24 / 25, "factuality": 24 / 25, "perfect": 0}
STICKER_UNREADABLE = {"coverage": 20 / 25, "fluency": 6 / 7, "perfect": 0}
RELATION_UNREADABLE = {"coverage": 24 / 25, "fluency": 6 / 7, "perfect": 0}
OPENING_UNREADABLE = {"coverage": 22 / 25, "fluency": 6 / 7, "perfect": 0}
NOT_PERFECT = {"perfect": 0}

# What is planted: (what it is, words to replace, replacement, exactly the metrics that change).
# An empty first string adds the second at the end.
PLANTED = [
    ("wrong colour", "a red star", "a pink star", ONE_FACT_WRONG),
    ("wrong shape", "blue oval", "blue round", ONE_FACT_WRONG),
    ("wrong size", "is large, on", "is small, on", ONE_FACT_WRONG),
    ("wrong position", "at the top left", "at the bottom left", ONE_FACT_WRONG),
    ("wrong position first", "In the upper right", "In the lower right", ONE_FACT_WRONG),
    ("wrong count", "four", "five", ONE_FACT_WRONG),
    ("wrong backdrop", "sky blue", "mint", ONE_FACT_WRONG),
    ("wrong pattern", "striped", "dotted", ONE_FACT_WRONG),
    (
        "swapped relation",
        "The fox is left of the umbrella",
        "The umbrella is left of the fox",
        ONE_FACT_WRONG,
    ),
    ("wrong relation", "Below the apple", "Above the apple", ONE_FACT_WRONG),
    ("relation within the margin", "left of the umbrella", "above the umbrella", ONE_FACT_WRONG),
    ("impossible relation", "left of the umbrella", "left of the fox", ONE_FACT_WRONG),
    (
        "relation to an absent object",
        "left of the umbrella",
        "left of the pear",
        {**ONE_FACT_WRONG, "chair_i": 1 / 5},
    ),
    (
        "hallucinated object instead of one",
        "a small apple",
        "a small pear",
        {"coverage": 20 / 25, "factuality": 20 / 25, "chair_i": 1 / 5, "perfect": 0},
    ),
    (
        "hallucinated object besides",
        "",
        " At the top is a small pear on a red round plate.",
        {"factuality": 25 / 30, "chair_i": 1 / 5, "perfect": 0},
    ),
    (
        "missing object that a relation names",
        f"{APPLE} ",
        "",
        {"coverage": 20 / 25, "perfect": 0},
    ),
    ("missing relation", " Below the apple is the owl.", "", {"coverage": 24 / 25, "perfect": 0}),
    (
        "missing opening",
        "There are four stickers on a striped sky blue backdrop. ",
        "",
        {"coverage": 22 / 25, "perfect": 0},
    ),
    ("repeated relation", "", " The fox is left of the umbrella.", NOT_PERFECT),
    ("repeated relation, other way round", "", " The owl is below the apple.", NOT_PERFECT),
    ("repeated relation by its converse", "", " The umbrella is right of the fox.", NOT_PERFECT),
    ("repeated object", "", f" {FOX}", NOT_PERFECT),
    ("repeated count", "", " There are four stickers.", NOT_PERFECT),
    ("repeated backdrop", "", " The backdrop is sky blue and striped.", NOT_PERFECT),
    (
        "contradiction",
        "",
        " A small fox sits on a pink star-shaped plate at the top left.",
        {"factuality": 29 / 30, "perfect": 0},
    ),
    ("a for an", "an orange", "a orange", STICKER_UNREADABLE),
    ("an for a", "A small fox", "An small fox", STICKER_UNREADABLE),
    ("are for is", "bottom right is large", "bottom right are large", STICKER_UNREADABLE),
    ("are for is in a relation", "is the owl", "are the owl", RELATION_UNREADABLE),
    ("is for are", "There are", "There is", OPENING_UNREADABLE),
    ("singular for plural", "four stickers", "four sticker", OPENING_UNREADABLE),
    ("plural for singular", "red star-shaped plate", "red star-shaped plates", STICKER_UNREADABLE),
    ("truncated sentence", "is the owl.", "is the", RELATION_UNREADABLE),
    ("missing full stop", "is the owl.", "is the owl", RELATION_UNREADABLE),
    ("garbage word", "small fox", "small blorp fox", STICKER_UNREADABLE),
    ("word said twice", "holds a", "holds a a", STICKER_UNREADABLE),
    ("missing word", "green plate", "plate", STICKER_UNREADABLE),
    ("missing space", "left. In", "left.In", STICKER_UNREADABLE),
    ("garbage sentence", "", " Blorp.", {"fluency": 7 / 8, "perfect": 0}),
    (
        "absent object in garbage",
        "",
        " A pear a pear the fox.",
        {"fluency": 7 / 8, "chair_i": 1 / 5, "perfect": 0},
    ),
]  # fmt: skip


def expect(changes: dict[str, float]) -> Score:
    return Score(**{**asdict(PERFECT), **changes})


def test_the_hand_written_caption_is_perfect() -> None:
    assert score(HAND_SCENE, CAPTION, NAMES) == PERFECT


@pytest.mark.parametrize(
    ("old", "new", "changes"), [case[1:] for case in PLANTED], ids=[case[0] for case in PLANTED]
)
def test_planted_error(old: str, new: str, changes: dict[str, float]) -> None:
    assert not old or CAPTION.count(old) == 1
    text = CAPTION.replace(old, new) if old else CAPTION + new
    assert asdict(score(HAND_SCENE, text, NAMES)) == pytest.approx(asdict(expect(changes)))


def test_missing_object_that_nothing_names() -> None:
    text = CAPTION.replace(f"{APPLE} ", "").replace("Below the apple is", "Below the umbrella is")
    expected = expect({"coverage": 20 / 25, "object_recall": 3 / 4, "perfect": 0})
    assert asdict(score(HAND_SCENE, text, NAMES)) == pytest.approx(asdict(expected))


def test_more_true_relations_than_asked_for_do_no_harm() -> None:
    text = CAPTION + " The fox is above the apple."
    assert score(HAND_SCENE, text, NAMES) == PERFECT


@pytest.mark.parametrize(
    ("opening", "changes"),
    [
        ("Two large stickers and two small stickers lie on a striped sky blue backdrop.", {}),
        ("Of the four stickers on a striped sky blue backdrop, two are large.", {}),
        ("There are four stickers. They lie on a striped sky blue backdrop.", {}),
        (
            "Two large stickers and three small stickers lie on a striped sky blue backdrop.",
            {"coverage": 24 / 25, "factuality": 25 / 26, "perfect": 0},
        ),
        (
            "Of the four stickers on a striped sky blue backdrop, three are large.",
            {"factuality": 25 / 26, "perfect": 0},
        ),
        ("The backdrop is sky blue and striped.", {"coverage": 24 / 25, "perfect": 0}),
        ("There are four stickers.", {"coverage": 23 / 25, "perfect": 0}),
    ],
)
def test_openings(opening: str, changes: dict[str, float]) -> None:
    text = opening + CAPTION[CAPTION.index(" A small fox") :]
    assert asdict(score(HAND_SCENE, text, NAMES)) == pytest.approx(asdict(expect(changes)))


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_empty_text_is_worth_nothing(text: str) -> None:
    assert score(HAND_SCENE, text, NAMES) == Score(0, 0, 0, 0, 0, 0)


def test_garbage_alone_states_nothing() -> None:
    assert score(HAND_SCENE, "pear owl. . fox", NAMES) == Score(0, 0, 1 / 3, 2 / 4, 0, 0)


def test_stickers_too_close_for_a_relation_need_none() -> None:
    pair = tuple(sticker(name, "red", "round", "small", 110, 110) for name in ("fox", "apple"))
    scene = Scene(0, "white", "plain", pair)
    text = compose(scene, np.random.default_rng(0)).text
    assert score(scene, text, NAMES) == PERFECT


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_composed_captions_are_perfect(scene_seed: int, caption_seed: int) -> None:
    scene = random_scene(scene_seed)
    text = compose(scene, np.random.default_rng(caption_seed)).text
    assert score(scene, text, NAMES) == PERFECT


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_text_has_a_score_and_a_cut_caption_is_not_perfect(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(CAPTION)))
    end = data.draw(st.integers(start, len(CAPTION)))
    text = CAPTION[:start] + data.draw(st.text(max_size=20)) + CAPTION[end:]
    values = asdict(score(HAND_SCENE, text, NAMES))
    assert all(0 <= value <= 1 for value in values.values())
    assert values["perfect"] == 0 or text.strip() == CAPTION


def test_a_scene_of_an_unknown_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="umbrella"):
        score(HAND_SCENE, CAPTION, ("fox", "apple", "owl"))


def test_summary_of_equal_scores_is_a_point() -> None:
    summary = summarise([PERFECT] * 5)
    for metric in METRICS:
        interval = getattr(summary, metric)
        assert interval.mean == interval.low == interval.high == getattr(PERFECT, metric)


def test_summary_is_the_mean_with_its_bootstrap_interval() -> None:
    empty = Score(0, 0, 0, 0, 0, 0)
    scores = [PERFECT] * 60 + [empty] * 40
    summary = summarise(scores)
    assert summary == summarise(scores)
    assert summary.coverage.mean == pytest.approx(0.6)
    # The standard error of a share of .6 of 100 is .049.
    assert summary.coverage.low == pytest.approx(0.6 - 1.96 * 0.049, abs=0.02)
    assert summary.coverage.high == pytest.approx(0.6 + 1.96 * 0.049, abs=0.02)
    assert summary.chair_i.mean == summary.chair_i.high == 0


def test_summary_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no scores"):
        summarise([])


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("The umbrella is left of the fox.", "relation"),
        ("The fox is left of the fox.", "relation to itself"),
        ("The fox is left of the pear.", "relation to nothing"),
    ],
)
def test_facts_are_counted_by_kind_and_wrong_relations_told_apart(said: str, kind: str) -> None:
    counts = judged(HAND_SCENE, CAPTION.replace("The fox is left of the umbrella.", said), NAMES)
    stickers = dict.fromkeys(("object", "size", "colour", "shape", "position"), 4)
    scene = dict.fromkeys(("count", "backdrop", "pattern", "relation"), 1)
    assert counts == {(kind, False): 1} | {(k, True): n for k, n in (stickers | scene).items()}

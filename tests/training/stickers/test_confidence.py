"""Wrong words, and what their confidence says."""

from dataclasses import replace

import numpy as np
import pytest

from rediff_model.words import Word
from training.stickers.atlas import Atlas, default_names
from training.stickers.confidence import Bin, Judged, auroc, judge_words, reliability
from training.stickers.grammar import compose
from training.stickers.graph import Scene
from training.stickers.sample import sample_scene

ATLAS, NAMES = Atlas.load(), default_names()


def wrong(scene: Scene, text: str) -> list[str]:
    """The wrong words of a caption."""
    found, at = [], 0
    words = []
    for piece in text.split():
        at = text.index(piece, at)
        words.append(Word(piece, at, at + len(piece), 0.5))
        at += len(piece)
    for word, judged in zip(words, judge_words(scene, text, words, NAMES), strict=True):
        if judged.wrong:
            found.append(word.text)
    return found


@pytest.fixture
def scene() -> Scene:
    scene = sample_scene(3, ATLAS)
    first = replace(scene.stickers[0], name="dog", colour="red", shape="round", size="small",
                    box=(0, 0, 60, 60))  # fmt: skip
    second = replace(scene.stickers[1], name="cat", colour="blue", shape="oval", size="large",
                     box=(150, 150, 224, 224))  # fmt: skip
    return replace(scene, backdrop="mint", pattern="plain", stickers=(first, second))


def test_a_true_caption_has_no_wrong_word() -> None:
    for seed in range(60):
        scene = sample_scene(seed, ATLAS)
        assert wrong(scene, compose(scene, np.random.default_rng(seed)).text) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("There are two stickers on a plain mint backdrop.", []),
        ("There are three stickers on a dotted mint backdrop.", ["three", "dotted"]),
        ("Of the two stickers on a plain mint backdrop, two are small.", ["two"]),
        ("  A small dog sits on a blue round plate at the top left.", ["blue"]),
        ("A large dog sits on a red star-shaped plate at the top.",
         ["large", "star-shaped", "at", "the", "top."]),
        # Of what is not there, the name alone.
        ("A small fox sits on a red round plate at the top left.", ["fox"]),
        ("The dog is right of the cat.", ["dog", "right", "of", "cat."]),
        ("The cat has the dog to its left.", []),
        ("The dog are left of the cat.", ["The", "dog", "are", "left", "of", "the", "cat."]),
        ("The dog is left of the cat. Dog dog", ["Dog", "dog"]),
    ],
)  # fmt: skip
def test_wrong_words(scene: Scene, text: str, words: list[str]) -> None:
    assert wrong(scene, text) == words


def test_auroc_is_the_chance_that_a_wrong_word_is_less_sure() -> None:
    right = [Judged(value, wrong=False) for value in (0.9, 0.8, 0.4)]
    assert auroc([*right, Judged(0.5, wrong=True)]) == pytest.approx(2 / 3)
    assert auroc([*right, Judged(0.4, wrong=True)]) == pytest.approx(2.5 / 3)
    assert auroc([*right, Judged(0.1, wrong=True), Judged(0.2, wrong=True)]) == 1
    assert auroc(right) is None
    assert auroc([]) is None


def test_reliability_sorts_words_by_their_confidence() -> None:
    words = [Judged(1.0, wrong=False), Judged(0.95, wrong=True), Judged(0.31, wrong=False)]
    low, high = reliability(words)
    assert low == Bin(1, 0.31, 1.0)
    assert high == Bin(2, (1.0 + 0.95) / 2, 0.5)

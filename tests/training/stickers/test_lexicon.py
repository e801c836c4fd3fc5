"""The words of the grammar."""

import numpy as np

from training.stickers.atlas import Atlas, default_names
from training.stickers.grammar import compose
from training.stickers.lexicon import unknown_words
from training.stickers.sample import sample_scene


def test_the_grammar_knows_its_own_words() -> None:
    atlas, names = Atlas.load(), default_names()
    for seed in range(200):
        text = compose(sample_scene(seed, atlas), np.random.default_rng(seed)).text
        assert unknown_words(text, names) == []


def test_misspelt_and_joined_words_are_found() -> None:
    text = "A small butterflo isThere two. The smalle pizza is left of the dog"
    assert unknown_words(text, default_names()) == ["butterflo", "isThere", "smalle"]
    assert unknown_words("", default_names()) == []

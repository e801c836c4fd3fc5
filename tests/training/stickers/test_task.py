"""The task of the embedded checkpoint: figures compare only while these digests stay."""

import hashlib
from dataclasses import astuple

import numpy as np

from training.stickers.atlas import Atlas
from training.stickers.grammar import compose
from training.stickers.sample import sample_scene
from training.stickers.score import score

ATLAS = Atlas.load()
SCENES = [sample_scene(seed, ATLAS, split="test") for seed in range(300)]
CAPTIONS = [compose(scene, np.random.default_rng(scene.seed)).text for scene in SCENES]


def digest(items: list[object]) -> str:
    return hashlib.sha256("\n".join(map(repr, items)).encode()).hexdigest()[:16]


def test_the_scene_sampler_draws_what_it_drew() -> None:
    assert digest([astuple(scene) for scene in SCENES]) == "778135ce559a8e62"


def test_the_grammar_writes_what_it_wrote() -> None:
    assert digest([*CAPTIONS]) == "64ddb52e1da5c3d8"


def test_the_scorer_judges_as_it_judged() -> None:
    # Captions of their own scene, of the scene before, and with a word or a sentence wrong.
    rows = [
        [round(value, 9) for value in astuple(score(scene, text, ATLAS.names))]
        for number, (scene, own) in enumerate(zip(SCENES, CAPTIONS, strict=True))
        for text in (
            own,
            CAPTIONS[number - 1],
            own.replace("small", "large").replace("left", "right"),
            own.replace(" is ", " are ", 1),
            own.partition(".")[2].strip(),
        )
    ]
    assert digest([*rows]) == "fd8725e25a21590b"

"""Captions whose relations are chosen by a rule."""

import numpy as np

from training.stickers.atlas import Atlas, default_names
from training.stickers.canonical import neighbour_relations, with_neighbour_relations
from training.stickers.grammar import compose
from training.stickers.parse import RelationFact, parse
from training.stickers.sample import sample_scene
from training.stickers.score import score

ATLAS, NAMES = Atlas.load(), default_names()


def relations(text: str) -> list[RelationFact]:
    facts = [fact for sentence in parse(text, NAMES) for fact in sentence.facts or ()]
    return [fact for fact in facts if isinstance(fact, RelationFact)]


def test_true_captions_stay_perfect() -> None:
    changed = 0
    for seed in range(200):
        scene = sample_scene(seed, ATLAS)
        text = compose(scene, np.random.default_rng(seed)).text
        again = with_neighbour_relations(text, scene, NAMES)
        assert score(scene, again, NAMES).perfect == 1
        changed += again != text
    assert changed > 100


def test_every_wording_of_a_scene_states_the_same_relations() -> None:
    for seed in range(30):
        scene = sample_scene(seed, ATLAS)
        expected = [
            RelationFact(scene.stickers[subject].name, kind, scene.stickers[object_].name)
            for subject, kind, object_ in neighbour_relations(scene)
        ]
        for draw in range(5):
            text = compose(scene, np.random.default_rng(draw)).text
            stated = relations(with_neighbour_relations(text, scene, NAMES))
            assert stated == expected[: len(stated)]
            assert len(stated) == len(relations(text))


def test_neighbours_in_reading_order_come_first() -> None:
    for seed in range(50):
        scene = sample_scene(seed, ATLAS)
        gaps = [object_ - subject for subject, _, object_ in neighbour_relations(scene)]
        assert min(gaps, default=1) > 0
        assert gaps == sorted(gaps)


def test_other_sentences_stay_as_they_are() -> None:
    scene = sample_scene(1, ATLAS)
    text = "There are two stickers. Nonsense here."
    assert with_neighbour_relations(text, scene, NAMES) == text

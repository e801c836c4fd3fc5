"""Captions that choose their relations by a rule, so that there is one right answer to learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.stickers.grammar import relation_surfaces
from training.stickers.parse import RelationFact, parse
from training.stickers.templates import CONVERSE, RELATION_TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.stickers.graph import RelationKind, Scene
    from training.stickers.templates import Template


def neighbour_relations(scene: Scene) -> list[tuple[int, RelationKind, int]]:
    """A true relation of every two stickers that have one, neighbours in reading order first.

    The subject comes before the object in reading order. What lies beside counts before what lies
    below.
    """
    count = len(scene.stickers)
    pairs = [(first, first + gap) for gap in range(1, count) for first in range(count - gap)]
    return [
        (first, kinds[0], second)
        for first, second in pairs
        if (kinds := [kind for kind in CONVERSE if scene.holds(first, kind, second)])
    ]


def with_neighbour_relations(text: str, scene: Scene, names: Sequence[str]) -> str:
    """A true caption with the first of `neighbour_relations` in place of its own relations, each in
    the wording of the sentence that it replaces."""
    left = iter(neighbour_relations(scene))
    sentences = []
    for sentence in parse(text, names):
        [fact] = sentence.facts if sentence.facts and len(sentence.facts) == 1 else (None,)
        chosen = next(left, None) if isinstance(fact, RelationFact) else None
        if chosen is None or not isinstance(fact, RelationFact):
            sentences.append(sentence.text)
            continue
        subject, kind, object_ = chosen
        surfaces = relation_surfaces(
            scene.stickers[subject].name, kind, scene.stickers[object_].name
        )
        sentences.append(_template(sentence.text, fact).render(surfaces)[0])
    return " ".join(sentences)


def _template(sentence: str, fact: RelationFact) -> Template:
    """The template by which a sentence states a relation."""
    surfaces = relation_surfaces(fact.subject, fact.kind, fact.object)
    return next(each for each in RELATION_TEMPLATES if each.render(surfaces)[0] == sentence)

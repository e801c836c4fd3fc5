"""The exact evaluator: what of a scene a caption states, and how much of that is true."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.evaluation.intervals import intervals
from training.stickers.grammar import true_relations
from training.stickers.parse import (
    AttributeFact,
    BackdropFact,
    CountFact,
    ObjectFact,
    PatternFact,
    RelationFact,
    parse,
)
from training.stickers.templates import CONVERSE

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    from training.evaluation.intervals import Interval
    from training.stickers.graph import Scene
    from training.stickers.parse import Fact

METRICS = ("coverage", "factuality", "chair_i", "object_recall", "fluency", "perfect")


@dataclass(frozen=True, slots=True)
class Score:
    """What a caption is worth, each metric in 0 to 1.

    coverage: share of the scene's facts that the caption states: per sticker its object and four
    attributes, then backdrop, pattern, the count, and the relations expected. The count is stated
    by the total, or by the numbers of large and of small ones.
    factuality: share of the facts stated, repetitions included, that are true; 0 if none is.
    chair_i: share of the objects mentioned that are not in the scene; 0 if none is mentioned.
    object_recall: share of the scene's stickers that are mentioned.
    fluency: share of the sentences that the grammar accepts; 0 without a sentence.
    perfect: 1 if every fact is there, none is wrong, every sentence is fluent and nothing is
    introduced twice (an object, a relation, the count, the backdrop), else 0.

    Objects are mentioned by any sentence, facts are stated only by those the grammar accepts.
    """

    coverage: float
    factuality: float
    chair_i: float
    object_recall: float
    fluency: float
    perfect: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The metrics of `Score` over many captions."""

    coverage: Interval
    factuality: Interval
    chair_i: Interval
    object_recall: Interval
    fluency: Interval
    perfect: Interval


def score(scene: Scene, text: str, names: Sequence[str]) -> Score:
    """The metrics of one caption; any text has a score.

    Raises ValueError if a sticker's name is not among `names`, the names the grammar knows.
    """
    present = {sticker.name for sticker in scene.stickers}
    if unknown := present.difference(names):
        raise ValueError(f"the scene's stickers {sorted(unknown)} are not among the known names")
    sentences = parse(text, names)
    stated = [same(fact) for sentence in sentences for fact in sentence.facts or ()]
    mentioned = {name for sentence in sentences for name in sentence.mentions}
    true = facts_of(scene)
    right = sum(fact in true for fact in stated)
    fluent = sum(sentence.facts is not None for sentence in sentences)
    coverage = _coverage(scene, true.intersection(stated))
    repeated = any(times > 1 for times in Counter(map(_topic, stated)).values())
    complete = coverage == 1 and right == len(stated) and fluent == len(sentences)
    return Score(
        coverage=coverage,
        factuality=right / len(stated) if stated else 0.0,
        chair_i=len(mentioned - present) / len(mentioned) if mentioned else 0.0,
        object_recall=len(mentioned & present) / len(present),
        fluency=fluent / len(sentences) if sentences else 0.0,
        perfect=float(complete and not repeated),
    )


def judged(scene: Scene, text: str, names: Sequence[str]) -> Counter[tuple[str, bool]]:
    """How many facts of each kind a caption states, right (true) and wrong (false).

    Relations are told apart: those of two stickers that are there, of a sticker to itself, and of
    something that is not there.
    """
    true = facts_of(scene)
    present = {sticker.name for sticker in scene.stickers}
    return Counter(
        (_kind(fact, present), same(fact) in true)
        for sentence in parse(text, names)
        for fact in sentence.facts or ()
    )


def _kind(fact: Fact, present: Set[str]) -> str:
    if isinstance(fact, AttributeFact):
        return fact.attribute
    if not isinstance(fact, RelationFact):
        return type(fact).__name__.removesuffix("Fact").lower()
    if fact.subject == fact.object:
        return "relation to itself"
    return "relation" if {fact.subject, fact.object} <= present else "relation to nothing"


def facts_of(scene: Scene) -> frozenset[Fact]:
    """Everything that is true of a scene and that the grammar can say, each relation once."""
    sizes = [sticker.size for sticker in scene.stickers]
    facts: list[Fact] = [
        CountFact("any", len(sizes)),
        CountFact("large", sizes.count("large")),
        CountFact("small", sizes.count("small")),
        BackdropFact(scene.backdrop),
        PatternFact(scene.pattern),
    ]
    for sticker in scene.stickers:
        row, column = sticker.cell
        facts += [
            ObjectFact(sticker.name),
            AttributeFact(sticker.name, "size", sticker.size),
            AttributeFact(sticker.name, "colour", sticker.colour),
            AttributeFact(sticker.name, "shape", sticker.shape),
            AttributeFact(sticker.name, "position", f"{row} {column}"),
        ]
    for subject, kind, object_ in true_relations(scene):
        relation = RelationFact(scene.stickers[subject].name, kind, scene.stickers[object_].name)
        facts.append(same(relation))
    return frozenset(facts)


def summarise(scores: Sequence[Score]) -> Summary:
    """Means with 95 % bootstrap intervals over captions; the same for the same scores.

    Raises ValueError without a score.
    """
    return Summary(
        *intervals(np.array([[getattr(each, metric) for metric in METRICS] for each in scores]))
    )


def _coverage(scene: Scene, correct: frozenset[Fact]) -> float:
    """Share of the scene's facts among the correct ones stated."""
    relations = sum(isinstance(fact, RelationFact) for fact in correct)
    counts = {fact.size for fact in correct if isinstance(fact, CountFact)}
    others = sum(not isinstance(fact, RelationFact | CountFact) for fact in correct)
    # Stickers too close to each other may stand in no relation at all.
    expected = min(scene.relations_expected, len(true_relations(scene)))
    counted = "any" in counts or counts == {"large", "small"}
    total = 5 * len(scene.stickers) + 3 + expected
    return (others + counted + min(relations, expected)) / total


def same(fact: Fact) -> Fact:
    """One way to say a relation: "b right of a" becomes "a left of b"."""
    if isinstance(fact, RelationFact) and fact.kind in ("right of", "below"):
        return RelationFact(fact.object, CONVERSE[fact.kind], fact.subject)
    return fact


def _topic(fact: Fact) -> object:
    """What a fact is about; a caption that states two facts of one topic repeats itself."""
    if isinstance(fact, CountFact):
        return CountFact, fact.size
    if isinstance(fact, BackdropFact | PatternFact):
        return type(fact)
    if isinstance(fact, AttributeFact):
        return fact.name, fact.attribute
    return fact

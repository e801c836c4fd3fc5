"""Writes captions of sticker scenes: complete, true, and worded in many ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from training.stickers.templates import (
    CONVERSE,
    FORM_SLOT,
    NUMBERS,
    OPENING_TEMPLATES,
    RELATION_TEMPLATES,
    SIZED_TEMPLATES,
    STICKER_TEMPLATES,
    SURFACES,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from training.stickers.graph import RelationKind, Scene, Sticker
    from training.stickers.templates import Slot, Template

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Span:
    """Characters start to end (exclusive) that hold one content phrase of a caption.

    `sticker` is the index of the sticker it speaks of, -1 for the scene as a whole; the spans of a
    relation's kind carry its subject.
    """

    start: int
    end: int
    slot: Slot
    sticker: int


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption and where its content words are, in order."""

    text: str
    spans: tuple[Span, ...]


def true_relations(scene: Scene) -> list[tuple[int, RelationKind, int]]:
    """Every relation that holds, once: the subject comes before the object in reading order."""
    count = len(scene.stickers)
    return [
        (first, kind, second)
        for first in range(count)
        for second in range(first + 1, count)
        for kind in CONVERSE
        if scene.holds(first, kind, second)
    ]


def compose(scene: Scene, rng: np.random.Generator, *, relations: int | None = None) -> Caption:
    """A complete and true caption in one of the grammar's many wordings.

    An opening (count, backdrop, pattern), a sentence a sticker in reading order, then that many
    different relations, or all there are, of different pairs where there are enough; by default
    `scene.relations_expected`.
    """
    wanted = scene.relations_expected if relations is None else relations
    draws = iter(rng.random(max(64, 16 + 3 * wanted)).tolist())
    writer = _Writer(draws)
    sizes = [sticker.size for sticker in scene.stickers]
    numbers = {
        "count": NUMBERS[len(sizes)],
        "large": NUMBERS[sizes.count("large")],
        "small": NUMBERS[sizes.count("small")],
        "backdrop": scene.backdrop,
        "pattern": scene.pattern,
    }
    mixed = len(set(sizes)) == 2
    for template in writer.pick(
        OPENING_TEMPLATES + SIZED_TEMPLATES if mixed else OPENING_TEMPLATES
    ):
        writer.write(template, numbers, {})
    for index, sticker in enumerate(scene.stickers):
        template = writer.pick(STICKER_TEMPLATES)
        surfaces = _sticker_surfaces(sticker, writer)
        writer.write(template, surfaces, dict.fromkeys(surfaces, index))
    for subject, kind, object_ in _choose_relations(scene, writer, wanted):
        template = writer.pick(RELATION_TEMPLATES)
        surfaces = relation_surfaces(
            scene.stickers[subject].name, kind, scene.stickers[object_].name
        )
        owners = {**dict.fromkeys(surfaces, subject), "object": object_}
        writer.write(template, surfaces, owners)
    return Caption(" ".join(writer.sentences), tuple(writer.spans))


def relation_surfaces(subject: str, kind: RelationKind, object_: str) -> dict[str, str]:
    """The phrases by placeholder of a relation between two stickers, by their names."""
    return {
        "subject": subject,
        "object": object_,
        **{form: SURFACES[form][kind][0] for form in ("relation", "side", "comparison")},
    }


def _sticker_surfaces(sticker: Sticker, writer: _Writer) -> dict[str, str]:
    row, column = sticker.cell
    return {
        "name": sticker.name,
        "size": sticker.size,
        "colour": sticker.colour,
        "shape": SURFACES["shape"][sticker.shape][0],
        "position": writer.pick(SURFACES["position"][f"{row} {column}"]),
    }


def _choose_relations(
    scene: Scene, writer: _Writer, wanted: int
) -> list[tuple[int, RelationKind, int]]:
    """Different true relations in random order and direction, of different pairs if possible."""
    left = true_relations(scene)
    chosen: list[tuple[int, RelationKind, int]] = []
    while left and len(chosen) < wanted:
        first, kind, second = writer.pick(left)
        chosen.append((first, kind, second))
        others = [relation for relation in left if relation[::2] != (first, second)]
        left = others or [relation for relation in left if relation not in chosen]
    return [
        relation
        if writer.pick((True, False))
        else (relation[2], CONVERSE[relation[1]], relation[0])
        for relation in chosen
    ]


class _Writer:
    """Collects sentences and their spans, and makes the choices."""

    def __init__(self, draws: Iterator[float]) -> None:
        self.sentences: list[str] = []
        self.spans: list[Span] = []
        self._draws = draws
        self._length = 0

    def pick(self, options: Sequence[_T]) -> _T:
        return options[int(next(self._draws) * len(options))]

    def write(
        self, template: Template, surfaces: Mapping[str, str], owners: Mapping[str, int]
    ) -> None:
        sentence, spans = template.render(surfaces)
        for start, end, form in spans:
            self.spans.append(
                Span(
                    self._length + start,
                    self._length + end,
                    FORM_SLOT[form],
                    owners.get(form, -1),
                )
            )
        self.sentences.append(sentence)
        self._length += len(sentence) + 1

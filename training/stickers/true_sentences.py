"""Every true sentence that the grammar can write of a scene, in tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.stickers.grammar import Caption, Span, true_relations
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
from training.stickers.tokenizer import slot_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenizers import Tokenizer

    from training.stickers.graph import Scene
    from training.stickers.templates import Template

Topic = tuple[str, ...]
"""What a sentence speaks of; a caption speaks of each once."""

COUNT: Topic = ("count",)
BACKDROP: Topic = ("backdrop",)


@dataclass(frozen=True, slots=True)
class TrueSentence:
    """A sentence with its tokens. `text` has the space before it, except at a caption's start."""

    text: str
    spans: tuple[tuple[int, int, str], ...]
    """(start, end, form) of the content phrases, without that space."""
    topics: frozenset[Topic]
    ids: tuple[int, ...]

    def slots(self, tokenizer: Tokenizer) -> list[int]:
        """Beside each token 0 for template text or 1 + index into `templates.SLOTS`."""
        lead = self.text.startswith(" ")
        spans = (
            Span(start + lead, end + lead, FORM_SLOT[form], -1) for start, end, form in self.spans
        )
        return slot_ids(tokenizer, Caption(self.text, tuple(spans)))[1]


def true_sentences(scene: Scene, tokenizer: Tokenizer, *, first: bool) -> list[TrueSentence]:
    """All wordings of all facts as they stand within a caption; of the opening as they stand
    at its start if `first`."""
    lead = "" if first else " "
    written = []
    for template, surfaces, topics in _wordings(scene, openings_only=first):
        text, spans = template.render(surfaces)
        written.append((f"{lead}{text}", tuple(spans), frozenset(topics)))
    unique = list({each[0]: each for each in written}.values())
    encodings = tokenizer.encode_batch([each[0] for each in unique], add_special_tokens=False)
    return [
        TrueSentence(*each, tuple(encoding.ids))
        for each, encoding in zip(unique, encodings, strict=True)
    ]


def expected_topics(scene: Scene) -> frozenset[Topic]:
    """What a complete caption speaks of, relations aside: of those any few will do."""
    return frozenset((COUNT, BACKDROP, *(("sticker", each.name) for each in scene.stickers)))


def _wordings(
    scene: Scene, *, openings_only: bool
) -> Iterator[tuple[Template, Mapping[str, str], tuple[Topic, ...]]]:
    sizes = [sticker.size for sticker in scene.stickers]
    opening = {
        "count": NUMBERS[len(sizes)],
        "large": NUMBERS[sizes.count("large")],
        "small": NUMBERS[sizes.count("small")],
        "backdrop": scene.backdrop,
        "pattern": scene.pattern,
    }
    about: dict[str, tuple[Topic, ...]] = {
        "opening": (COUNT, BACKDROP),
        "count": (COUNT,),
        "backdrop": (BACKDROP,),
    }
    openings = OPENING_TEMPLATES + SIZED_TEMPLATES if len(set(sizes)) == 2 else OPENING_TEMPLATES
    for templates in openings:
        for template in templates:
            yield template, opening, about[template.kind]
    if openings_only:
        return
    for sticker in scene.stickers:
        row, column = sticker.cell
        for position in SURFACES["position"][f"{row} {column}"]:
            surfaces = {
                "name": sticker.name,
                "size": sticker.size,
                "colour": sticker.colour,
                "shape": SURFACES["shape"][sticker.shape][0],
                "position": position,
            }
            for template in STICKER_TEMPLATES:
                yield template, surfaces, (("sticker", sticker.name),)
    for one, kind, other in true_relations(scene):
        names = scene.stickers[one].name, scene.stickers[other].name
        topic: Topic = ("relation", names[0], kind, names[1])
        for subject, said, object_ in (
            (names[0], kind, names[1]),
            (names[1], CONVERSE[kind], names[0]),
        ):
            surfaces = {
                "subject": subject,
                "object": object_,
                **{form: SURFACES[form][said][0] for form in ("relation", "side", "comparison")},
            }
            for template in RELATION_TEMPLATES:
                yield template, surfaces, (topic,)

"""What is wrong with drafts, beside what is wrong with the captions that Stage I corrupts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from training.stickers.nearest_caption import repair
from training.stickers.substitutes import Substitutes
from training.stickers.templates import SLOTS
from training.stickers.true_sentences import expected_topics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from tokenizers import Tokenizer

    from training.scenes.canvases import CanvasBuilder, Mix
    from training.stickers.graph import Scene
    from training.stickers.nearest_caption import Piece

ERRORS = (*SLOTS, "template", "agreement", "repetition", "hopeless", "omission")
"""Kinds of error. A slot's name: its phrase is another one. `template`: a word between the phrases
is. `agreement`: the other form of a/an, is/are or sticker(s). `repetition`: the word before once
more, or a sentence about what was said. `hopeless`: a sentence with no true one of equal length
near it, whatever its parts. `omission`: a sticker, the count, the backdrop or an expected relation
that no sentence speaks of."""


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """How often one kind of error occurs in one source of captions."""

    source: str
    kind: str
    count: int
    per_caption: float
    share: float
    """Of all errors of the source; 0 if it has none."""


def error_table(
    sources: Mapping[str, Iterable[tuple[Scene, Sequence[int]]]], tokenizer: Tokenizer
) -> list[ErrorRow]:
    """A row for every source and kind, in the order of `ERRORS`.

    A source gives scenes with the ids of a caption each, up to the stop. Neighbouring wrong tokens
    of one kind are one error.
    """
    rows = []
    for source, captions in sources.items():
        counts: Counter[str] = Counter()
        number = 0
        for scene, ids in captions:
            counts.update(errors_of(scene, ids, tokenizer))
            number += 1
        total = counts.total()
        rows += [
            ErrorRow(
                source,
                kind,
                counts[kind],
                counts[kind] / number if number else 0.0,
                counts[kind] / total if total else 0.0,
            )
            for kind in ERRORS
        ]
    return rows


def errors_of(scene: Scene, ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The errors of one caption, in order, omissions last."""
    pieces = repair(ids, scene, tokenizer)
    found: list[str] = []
    for piece in pieces:
        found += _errors_within(ids, piece, tokenizer)
    said = [piece.topics for piece in pieces if not piece.repeats]
    missing = expected_topics(scene).difference(*said)
    relations = sum(topic[0] == "relation" for topics in said for topic in topics)
    short = max(0, scene.relations_expected - relations)
    return found + ["omission"] * (len(missing) + short)


def synthetic(
    builder: CanvasBuilder,
    scenes: Sequence[Scene],
    mix: Mix,
    rng: np.random.Generator,
    per_scene: int = 2,
) -> list[tuple[Scene, list[int]]]:
    """Captions as Stage I corrupts them under a mix, its masks taken away again."""
    canvases = builder.build(scenes, per_scene, mix, rng)
    found = []
    for number, (inputs_C, targets_C) in enumerate(
        zip(canvases.inputs_NC.tolist(), canvases.targets_NC.tolist(), strict=True)
    ):
        ids = [
            target if token == builder.mask_id else token
            for token, target in zip(inputs_C, targets_C, strict=True)
        ]
        end = ids.index(builder.stop_id) if builder.stop_id in ids else len(ids)
        found.append((scenes[number // per_scene], ids[:end]))
    return found


def plot(rows: Sequence[ErrorRow], path: Path) -> None:
    """Errors a caption by kind, a bar for each source, as a picture file."""
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(row.source for row in rows))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(sources))
    for number, source in enumerate(sources):
        heights = [row.per_caption for row in rows if row.source == source]
        places = [kind + (number - (len(sources) - 1) / 2) * width for kind in range(len(ERRORS))]
        axes.bar(places, heights, width, label=source)
    axes.set_xticks(range(len(ERRORS)), ERRORS, rotation=40, ha="right")
    axes.set_ylabel("errors a caption")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _errors_within(ids: Sequence[int], piece: Piece, tokenizer: Tokenizer) -> list[str]:
    if piece.repeats:
        return ["repetition"]
    if piece.target is None:
        return ["hopeless"]
    changed = piece.changed(ids)
    if not changed:
        return []
    slots = piece.target.slots(tokenizer)
    flips = _flips(tokenizer)
    found: list[str] = []
    last = -1, ""
    for place in changed:
        right = piece.labels[place - piece.first]
        slot = slots[place - piece.first]
        if flips.get(ids[place]) == right:
            kind = "agreement"
        elif place and ids[place] == ids[place - 1]:
            kind = "repetition"
        else:
            kind = SLOTS[slot - 1] if slot else "template"
        if last != (place - 1, kind):
            found.append(kind)
        last = place, kind
    return found


@lru_cache(maxsize=4)
def _flips(tokenizer: Tokenizer) -> dict[int, int]:
    return Substitutes(tokenizer, ()).flips

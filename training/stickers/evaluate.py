"""Evaluates a captioner on sticker scenes with the exact evaluator.

Shape suffixes: P prompt rows, D hidden size.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from rediff_model.chat_template import DEFAULT_QUESTION
from rediff_model.sampling.sampler import generate
from rediff_model.words import token_texts, words
from training.stickers.atlas import default_names
from training.stickers.confidence import Judged, auroc, judge_words, reliability
from training.stickers.export import SEED_STRIDE, annotation
from training.stickers.grammar import compose
from training.stickers.lexicon import unknown_words
from training.stickers.parse import CountFact, parse
from training.stickers.render import render
from training.stickers.sample import sample_scene
from training.stickers.score import METRICS, judged, score, summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from rediff_model.model import Captioner
    from rediff_model.sampling.outputs import Generation
    from rediff_model.sampling.params import SamplerSettings
    from training.stickers.atlas import Atlas
    from training.stickers.graph import Scene

T = TypeVar("T")

BATCH = 16


@dataclass(frozen=True, slots=True)
class Row:
    """What one way of decoding scored."""

    tokens_per_step: int
    refine: bool
    forwards: float
    """Forward passes a caption, on average."""
    captions: tuple[str, ...]
    facts: dict[str, dict[str, int]]
    """How many facts of each kind all captions together state: `right` and `wrong`."""
    metrics: dict[str, dict[str, float]]
    """Metric name to its mean and 95 % interval: `mean`, `low`, `high`."""
    unknown_words: float = 0.0
    """Share of the captions that hold a word which the grammar never writes."""
    judged: tuple[Judged, ...] = ()
    """Every word of the captions."""
    sizes_stated: float = 0.0
    """Share of the captions that say how many stickers are large or small."""

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens_per_step": self.tokens_per_step,
            "refine": self.refine,
            "forwards": self.forwards,
            "unknown_words": self.unknown_words,
            "sizes_stated": self.sizes_stated,
            **self.metrics,
            "facts": self.facts,
            "confidence": {
                "auroc": auroc(self.judged),
                "reliability": [asdict(each) for each in reliability(self.judged)],
            },
        }


@torch.inference_mode()
def scene_prompts(
    captioner: Captioner,
    scenes: Sequence[Scene],
    atlas: Atlas,
    questions: Sequence[str] = (DEFAULT_QUESTION,),
) -> list[Tensor]:
    """Prompts, each [P, D], of rendered scenes: pixels through the captioner's own tower. Scenes
    are asked the questions in turn."""
    prompts: list[Tensor] = []
    asked = cycle(questions)
    for part in _parts(scenes):
        features = captioner.image_features([render(scene, atlas) for scene in part])
        prompts += [captioner.prompt(*pair) for pair in zip(features, asked, strict=False)]
    return prompts


def evaluate(
    captioner: Captioner,
    scenes: Sequence[Scene],
    prompts: Sequence[Tensor],
    names: Sequence[str],
    settings: SamplerSettings,
    on_captions: Callable[[int], None] | None = None,
) -> Row:
    """Caption scenes with one way of decoding and score them; `on_captions` counts progress."""
    generations = decode(captioner, prompts, settings, on_captions=on_captions)
    captions = tuple(captioner.decode(generation.ids) for generation in generations)
    judged: list[Judged] = []
    for scene, generation, text in zip(scenes, generations, captions, strict=True):
        texts = token_texts(generation.ids, captioner.decode)
        judged += judge_words(
            scene, text, words(texts, generation.confidences[: len(texts)]), names
        )
    scores = [score(scene, text, names) for scene, text in zip(scenes, captions, strict=True)]
    return Row(
        tokens_per_step=settings.tokens_per_step or 4,
        refine=settings.refine,
        forwards=sum(generation.steps for generation in generations) / len(generations),
        captions=captions,
        facts=_facts(scenes, captions, names),
        metrics=asdict(summarise(scores)),
        judged=tuple(judged),
        unknown_words=sum(bool(unknown_words(text, names)) for text in captions) / len(captions),
        sizes_stated=sum(states_sizes(text, names) for text in captions) / len(captions),
    )


def states_sizes(text: str, names: Sequence[str]) -> bool:
    """Whether a caption says how many stickers are large or small."""
    facts = [fact for sentence in parse(text, names) for fact in sentence.facts or ()]
    return any(isinstance(fact, CountFact) and fact.size != "any" for fact in facts)


def _facts(
    scenes: Sequence[Scene], captions: Sequence[str], names: Sequence[str]
) -> dict[str, dict[str, int]]:
    counts: Counter[tuple[str, bool]] = Counter()
    for scene, text in zip(scenes, captions, strict=True):
        counts.update(judged(scene, text, names))
    kinds = sorted({kind for kind, _ in counts})
    return {k: {"right": counts[k, True], "wrong": counts[k, False]} for k in kinds}


def decode(
    captioner: Captioner,
    prompts: Sequence[Tensor],
    settings: SamplerSettings,
    prompt_refresh_interval: int | None = 1,
    on_captions: Callable[[int], None] | None = None,
) -> list[Generation]:
    """Captions of prompts [P, D], in batches."""
    generations: list[Generation] = []
    for part in _parts(prompts):
        generations += generate(
            captioner.model,
            part,
            [settings] * len(part),
            captioner.token_ids,
            prompt_refresh_interval=prompt_refresh_interval,
        )
        if on_captions is not None:
            on_captions(len(part))
    return generations


def evaluate_split(
    captioner: Captioner,
    split: str,
    seed: int,
    count: int,
    atlas: Atlas,
    ways: Sequence[SamplerSettings],
    on_captions: Callable[[int], None] | None = None,
    questions: Sequence[str] = (DEFAULT_QUESTION,),
) -> tuple[list[Row], list[Scene]]:
    """One row a way of decoding, on the scenes that `rediff data scenes` writes for the seed.

    Scenes are asked the questions in turn.

    Raises:
        ValueError: an unknown split, a count below 1, or no way of decoding.
    """
    if count < 1:
        raise ValueError(f"the number of scenes must be 1 or more, got {count}")
    if not ways:
        raise ValueError("no settings to evaluate with")
    first = seed * SEED_STRIDE
    scenes = [sample_scene(first + index, atlas, split=split) for index in range(count)]
    prompts = scene_prompts(captioner, scenes, atlas, questions)
    names = default_names()
    rows = [evaluate(captioner, scenes, prompts, names, settings, on_captions) for settings in ways]
    return rows, scenes


def table(rows: Sequence[Row]) -> str:
    """The means as text, a line a way of decoding."""
    header = f"{'tokens/step':>11} {'refine':>6} {'forwards':>8}"
    lines = [header + "".join(f" {name:>13}" for name in (*METRICS, "unknown_words"))]
    for row in rows:
        start = f"{row.tokens_per_step:>11} {'on' if row.refine else 'off':>6} {row.forwards:>8.1f}"
        means = [*(row.metrics[metric]["mean"] for metric in METRICS), row.unknown_words]
        lines.append(start + "".join(f" {mean:>13.3f}" for mean in means))
    return "\n".join(lines)


def write_captions(path: Path, rows: Sequence[Row], scenes: Sequence[Scene], split: str) -> None:
    """One JSON line a caption, with its annotation, so that anyone can score it again."""
    annotations = [
        annotation(
            scene, f"{index:06d}.png", compose(scene, np.random.default_rng(scene.seed)).text, split
        )
        for index, scene in enumerate(scenes)
    ]
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            for record, caption in zip(annotations, row.captions, strict=True):
                line = {
                    "tokens_per_step": row.tokens_per_step,
                    "refine": row.refine,
                    "caption": caption,
                    "annotation": record,
                }
                file.write(json.dumps(line) + "\n")


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]

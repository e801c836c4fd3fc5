"""The sides of the comparison with an autoregressive twin: what each is given and how it captions.

Shape suffixes: N scenes, P cells of a picture (of a prompt: its rows), F feature channels, D hidden
size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from benchmarks import cost
from benchmarks.client import engine_for
from rediff_model.sampling.params import PRESETS, SamplerSettings
from rediff_model.vision.tiling import layout, merge
from training.scenes.features import scene_tiles
from training.stickers.graph import PICTURE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import ExitStack

    from torch import Tensor

    from benchmarks.client import Work
    from rediff_model.model import Captioner
    from training.stickers.atlas import Atlas
    from training.stickers.graph import Scene

TOKENS_PER_STEP: Final = (1, 4, 8)
TILES_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Made:
    """One caption."""

    ids: tuple[int, ...]
    forwards: int


@dataclass(frozen=True, slots=True)
class Side:
    """One way of captioning: places of prompts and a batch size in, captions in order out."""

    name: str
    caption: Callable[[Sequence[int], int], list[Made]]
    flops: Callable[[float], float]
    """Operations of a caption, by arithmetic, of so many forward passes."""
    batches: tuple[int, ...]
    same_as: str | None = None
    """The side that must make the same captions, and so has the same quality."""


@torch.inference_mode()
def tower_features(captioner: Captioner, scenes: Sequence[Scene], atlas: Atlas) -> Tensor:
    """Features of rendered scenes, [N, P, F]."""
    tower = captioner.model.tower
    tiles = scene_tiles(scenes, atlas, captioner.config)
    return torch.cat([tower(tower.normalise(part)) for part in torch.split(tiles, TILES_AT_ONCE)])


@torch.inference_mode()
def our_prompts(captioner: Captioner, features_NPF: Tensor) -> list[Tensor]:
    """Prompts of our model, [P, D] each."""
    plan = layout((PICTURE_SIZE, PICTURE_SIZE), captioner.config)
    newline_D = captioner.model.newline_D
    return [
        captioner.prompt(merge(captioner.model.project(features_NPF[row, None]), plan, newline_D))
        for row in range(len(features_NPF))
    ]


def ways(captioner: Captioner, length: int) -> dict[str, SamplerSettings]:
    """What the engine is asked for, by name: tokens a step, and the presets that adapt."""
    fixed = {
        f"{tokens} a step": SamplerSettings(canvas_length=length, tokens_per_step=tokens)
        for tokens in TOKENS_PER_STEP
    }
    presets = {
        name: replace(PRESETS[name], canvas_length=length) for name in ("adaptive", "careful")
    }
    return {
        name: settings.preferring(captioner.config.preferences)
        for name, settings in (fixed | presets).items()
    }


def sides(
    work: Work,
    generate: Callable[[Sequence[int]], list[list[int]]],
    length: int,
    batches: Sequence[int],
    stack: ExitStack,
) -> Iterator[Side]:
    """Everything that is compared; the engines run until `stack` is closed.

    `generate` makes the twin's captions of some prompts in one batch; `length` is the longest.
    """
    batches = sorted({1, *batches})
    clients = {batch: stack.enter_context(engine_for(work, batch)) for batch in batches}

    language, prompt = work.captioner.config.language, len(work.prompts[0])
    prefill = cost.forward(language, prompt, prompt, head_rows=0, itemsize=4).flops

    def engine_flops(forwards: float) -> float:
        return prefill + forwards * cost.engine_step(language, prompt, length, 1, 4).flops

    def reference_flops(forwards: float) -> float:
        return forwards * cost.reference_step(language, prompt, length, 4).flops

    def twin_flops(forwards: float) -> float:
        # A row attends to the prompt and, on average, to half of the caption.
        seen = prompt + forwards / 2
        return prefill + forwards * cost.forward(language, 1, seen, head_rows=1, itemsize=4).flops

    def reference(settings: SamplerSettings) -> Callable[[Sequence[int], int], list[Made]]:
        def caption(places: Sequence[int], _: int) -> list[Made]:
            made = [work.reference(place, settings) for place in places]
            return [Made(tuple(one.ids), one.steps) for one in made]

        return caption

    def engine(settings: SamplerSettings) -> Callable[[Sequence[int], int], list[Made]]:
        def caption(places: Sequence[int], batch: int) -> list[Made]:
            made, _ = clients[batch].run(settings, places)
            return [Made(tuple(one.ids), one.steps) for one in made]

        return caption

    def twin(places: Sequence[int], batch: int) -> list[Made]:
        made: list[list[int]] = []
        for start in range(0, len(places), batch):
            made += generate(places[start : start + batch])
        return [Made(tuple(ids), min(len(ids) + 1, length)) for ids in made]

    for name, settings in ways(work.captioner, length).items():
        ours = f"engine, {name}"
        yield Side(ours, engine(settings), engine_flops, tuple(batches))
        if settings.reveal_threshold is None:
            yield Side(f"reference, {name}", reference(settings), reference_flops, (1,), ours)
    yield Side("twin, generate", twin, twin_flops, tuple(batches))

"""Scenes for the tests of the caption language, made without pictures."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.config import SceneTraining
from training.stickers.grammar import compose
from training.stickers.graph import BACKDROPS, COLOURS, PATTERNS, SHAPES, SIZES, Scene, Sticker
from training.stickers.tokenizer import train_tokenizer

NAMES = (
    "fox", "apple", "umbrella", "fire engine", "hot air balloon", "unicorn", "banana", "octopus",
    "ladybug", "teddy bear", "pizza", "rocket", "violin", "airplane", "guitar", "cactus", "pear",
    "elephant", "hourglass", "ice cream", "lion", "owl", "ant", "honeybee", "watermelon", "egg",
    "bow and arrow", "traffic light", "magnifying glass", "toothbrush", "igloo", "key",
)  # fmt: skip


def sticker(name: str, colour: str, shape: str, size: str, x: int, y: int) -> Sticker:
    """A sticker whose centre is at (x, y)."""
    half = 20 if size == "small" else 32
    box = (x - half, y - half, x + half, y + half)
    return Sticker(name, "drawn", colour, shape, "small" if size == "small" else "large", box)


HAND_SCENE = Scene(
    0,
    "sky blue",
    "striped",
    (
        sticker("fox", "red", "star", "small", 40, 40),
        sticker("umbrella", "orange", "round", "large", 185, 45),
        sticker("apple", "blue", "oval", "small", 112, 112),
        sticker("owl", "green", "square", "large", 185, 185),
    ),
)


def descend(
    loss_of: Callable[[], Tensor], weights: Sequence[Tensor], rate: float, steps: int
) -> list[float]:
    """Losses on the way down with Adam."""
    optimizer = torch.optim.Adam(weights, rate)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def random_scene(seed: int, stickers: int | None = None) -> Scene:
    """A scene of two to five stickers in different cells, or of as many as given."""
    rng = np.random.default_rng(seed)
    count = stickers or int(rng.integers(2, 6))
    cells = np.sort(rng.choice(9, count, replace=False)).tolist()
    names = rng.choice(len(NAMES), count, replace=False).tolist()
    return Scene(
        seed,
        BACKDROPS[rng.integers(len(BACKDROPS))],
        PATTERNS[rng.integers(len(PATTERNS))],
        tuple(
            sticker(
                NAMES[name],
                COLOURS[rng.integers(len(COLOURS))],
                SHAPES[rng.integers(len(SHAPES))],
                SIZES[rng.integers(2)],
                37 + 75 * (cell % 3) + int(rng.integers(-4, 5)),
                37 + 75 * (cell // 3) + int(rng.integers(-4, 5)),
            )
            for cell, name in zip(cells, names, strict=True)
        ),
    )


@lru_cache(maxsize=1)
def sample_tokenizer() -> Tokenizer:
    """A tokenizer trained on captions of these scenes."""
    captions = (compose(random_scene(i), np.random.default_rng(i)).text for i in range(600))
    return train_tokenizer(captions, NAMES, vocabulary_size=580)


def tiny_training(start: Path, scenes: int, **changes: object) -> SceneTraining:
    """A run of seconds from a checkpoint."""
    values = {
        "tower": start,
        "start_from": start,
        "data": {"scenes": scenes, "validation_scenes": 2},
        "pictures": 2,
        "phases": [{"steps": 1}],
        "precision": "no",
        "threads": 1,
    }
    return SceneTraining.model_validate(values | changes)

"""Random scenes: which stickers, where, on what."""

from __future__ import annotations

import math
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from training.stickers.graph import (
    BACKDROPS,
    COLOURS,
    PATTERNS,
    PICTURE_SIZE,
    SHAPES,
    SIZES,
    Scene,
    Size,
    Sticker,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.stickers.atlas import Atlas

STREAMS = {"train": 0, "validation": 1, "test": 2, "held_out_pairs": 3}
"""Number of each split's stream of scenes."""

PLATE_SIDES: dict[Size, tuple[int, int]] = {"small": (40, 46), "large": (60, 70)}
"""Least and greatest longer side of a plate in pixels."""

OVAL_ASPECT = 1.4
HELD_OUT_ONE_IN = 50
FEWEST, MOST = 2, 5
GRID = 3


@lru_cache(maxsize=8)
def default_held_out_pairs(names: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    """(colour, name) pairs kept out of training: about one in fifty, fixed by a checksum.

    The choice for one pair does not depend on which other classes there are.
    """
    return frozenset(
        (colour, name)
        for name in names
        for colour in COLOURS
        if zlib.crc32(f"{colour} {name}".encode()) % HELD_OUT_ONE_IN == 0
    )


def sample_scene(
    seed: int,
    atlas: Atlas,
    *,
    stickers: int | None = None,
    held_out_pairs: frozenset[tuple[str, str]] | None = None,
    split: str = "train",
) -> Scene:
    """The scene that `split` and `seed` determine (with the atlas's names and vendors).

    Everything is uniform: 2 to 5 stickers (or `stickers`), names without repetition, attributes
    independent. The pairs in `held_out_pairs` (default: `default_held_out_pairs`) never occur in
    "train" and "validation"; "test" draws freely; every scene of "held_out_pairs" has at least one.
    Raises ValueError for an unknown split, a negative seed or an impossible number of stickers.
    """
    if split not in STREAMS:
        raise ValueError(f"split is {split!r}, expected one of {tuple(STREAMS)}")
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more")
    most = min(MOST, len(atlas.names))
    if stickers is not None and not 1 <= stickers <= most:
        raise ValueError(f"stickers is {stickers}, expected 1 to {most}")
    pairs = default_held_out_pairs(atlas.names) if held_out_pairs is None else held_out_pairs
    rng = np.random.default_rng((STREAMS[split], seed))
    count = int(rng.integers(FEWEST, most + 1)) if stickers is None else stickers
    names = [atlas.names[i] for i in rng.choice(len(atlas.names), count, replace=False)]
    colours = [_pick(rng, COLOURS) for _ in names]
    if split in ("train", "validation"):
        colours = [_allowed(rng, name, c, pairs) for name, c in zip(names, colours, strict=True)]
    elif split == "held_out_pairs":
        _plant_pair(rng, names, colours, atlas, pairs)
    cells = np.sort(rng.choice(GRID * GRID, count, replace=False))
    return Scene(
        seed=seed,
        backdrop=_pick(rng, BACKDROPS),
        pattern=_pick(rng, PATTERNS),
        stickers=tuple(
            _sticker(rng, name, colour, divmod(int(cell), GRID), atlas.vendors)
            for name, colour, cell in zip(names, colours, cells, strict=True)
        ),
    )


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _allowed(
    rng: np.random.Generator, name: str, colour: str, pairs: frozenset[tuple[str, str]]
) -> str:
    """The colour, or another one if the pair is held out."""
    if (colour, name) not in pairs:
        return colour
    allowed = [other for other in COLOURS if (other, name) not in pairs]
    if not allowed:
        raise ValueError(f"every colour of {name!r} is held out")
    return _pick(rng, allowed)


def _plant_pair(
    rng: np.random.Generator,
    names: list[str],
    colours: list[str],
    atlas: Atlas,
    pairs: frozenset[tuple[str, str]],
) -> None:
    """Make one sticker a held-out pair, names staying distinct."""
    known = sorted(pair for pair in pairs if pair[1] in atlas.names)
    if not known:
        raise ValueError("no held-out pair has a class of this atlas")
    colour, name = known[int(rng.integers(len(known)))]
    place = names.index(name) if name in names else int(rng.integers(len(names)))
    names[place], colours[place] = name, colour


def _sticker(
    rng: np.random.Generator,
    name: str,
    colour: str,
    cell: tuple[int, int],
    vendors: Sequence[str],
) -> Sticker:
    size = SIZES[int(rng.integers(len(SIZES)))]
    shape = _pick(rng, SHAPES)
    least, greatest = PLATE_SIDES[size]
    side = int(rng.integers(least, greatest + 1))
    height = round(side / OVAL_ASPECT) if shape == "oval" else side
    # An oval moves as its bounding square would. Then plates of one row or column never differ by
    # RELATION_MARGIN along the other axis, and neighbours always do.
    y0 = _offset(rng, cell[0], side) + (side - height) // 2
    x0 = _offset(rng, cell[1], side)
    return Sticker(
        name=name,
        vendor=_pick(rng, vendors),
        colour=colour,
        shape=shape,
        size=size,
        box=(x0, y0, x0 + side, y0 + height),
    )


def _offset(rng: np.random.Generator, index: int, side: int) -> int:
    """Where a square of `side` starts inside cell `index` along one axis."""
    first = math.ceil(index * PICTURE_SIZE / GRID)
    last = math.floor((index + 1) * PICTURE_SIZE / GRID) - side
    return int(rng.integers(first, last + 1))

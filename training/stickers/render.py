"""Draw a scene. Colours and poses vary a little, never enough to change a fact."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from training.stickers.graph import PICTURE_SIZE

if TYPE_CHECKING:
    from training.stickers.atlas import Atlas
    from training.stickers.graph import Scene, Sticker

Colour = tuple[int, int, int]

PLATE_COLOURS: dict[str, Colour] = {
    "red": (215, 38, 44),
    "orange": (246, 130, 22),
    "yellow": (250, 216, 45),
    "green": (46, 155, 78),
    "blue": (34, 98, 212),
    "purple": (122, 54, 170),
    "pink": (248, 140, 190),
    "black": (36, 36, 40),
}
BACKDROP_COLOURS: dict[str, Colour] = {
    "white": (251, 251, 251),
    "grey": (193, 195, 199),
    "cream": (252, 238, 200),
    "mint": (192, 238, 209),
    "lilac": (219, 202, 244),
    "sky blue": (178, 220, 250),
}
PLATE_JITTER, BACKDROP_JITTER = 8, 3
PATTERN_TONE = 0.88
"""Brightness of a pattern's marks relative to the backdrop."""

OUTLINE_TONE = 0.72
OUTLINE_WIDTH = 1.3
SUPERSAMPLE = 3

PICTURE_SCALES: dict[str, tuple[float, float]] = {
    "round": (0.68, 0.76),
    "square": (0.70, 0.80),
    "oval": (0.56, 0.63),
    "diamond": (0.56, 0.63),
    "star": (0.54, 0.60),
}
"""Least and greatest side of a picture relative to its plate's longer side."""

LARGEST_TILT = 12.0
"""Degrees."""

HALO_COLOUR = (255, 255, 255)
STAR_INNER_RADIUS = 0.60
CORNER_RADIUS = 0.14
PERIODS = (18, 21, 24)
"""Pixels between two marks of a pattern."""


def render(scene: Scene, atlas: Atlas) -> Image.Image:
    """RGB picture of `PICTURE_SIZE` squared; the same for the same scene.

    Raises ValueError for a vendor or name that the atlas lacks, KeyError for an unknown attribute.
    """
    rng = np.random.default_rng(scene.seed)
    backdrop = _jitter(rng, BACKDROP_COLOURS[scene.backdrop], BACKDROP_JITTER)
    canvas = Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), backdrop)
    if scene.pattern != "plain":
        _draw_pattern(rng, canvas, scene.pattern, _tone(backdrop, PATTERN_TONE))
    for sticker in scene.stickers:
        _draw_sticker(rng, canvas, sticker, atlas.picture(sticker.vendor, sticker.name))
    return canvas


def _jitter(rng: np.random.Generator, colour: Colour, reach: int) -> Colour:
    red, green, blue = np.clip(np.add(colour, rng.integers(-reach, reach + 1, 3)), 0, 255).tolist()
    return red, green, blue


def _tone(colour: Colour, factor: float) -> Colour:
    red, green, blue = (round(channel * factor) for channel in colour)
    return red, green, blue


def _draw_pattern(
    rng: np.random.Generator, canvas: Image.Image, pattern: str, colour: Colour
) -> None:
    period = PERIODS[int(rng.integers(len(PERIODS)))]
    variant = int(rng.integers(3))
    marks = pattern_mask(pattern, period, variant)
    left, top = rng.integers(2 * period, size=2).tolist()
    window = marks.crop((left, top, left + PICTURE_SIZE, top + PICTURE_SIZE))
    canvas.paste(colour, (0, 0), window)


def _draw_sticker(
    rng: np.random.Generator, canvas: Image.Image, sticker: Sticker, picture: Image.Image
) -> None:
    x0, y0, x1, y1 = sticker.box
    colour = _jitter(rng, PLATE_COLOURS[sticker.colour], PLATE_JITTER)
    outer, inner = plate_masks(sticker.shape, x1 - x0, y1 - y0)
    canvas.paste(_tone(colour, OUTLINE_TONE), (x0, y0), outer)
    canvas.paste(colour, (x0, y0), inner)
    side = round(max(outer.size) * rng.uniform(*PICTURE_SCALES[sticker.shape]))
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    posed = picture.resize((side, side), Image.Resampling.LANCZOS).rotate(
        rng.uniform(-LARGEST_TILT, LARGEST_TILT), Image.Resampling.BICUBIC, expand=True
    )
    # The rim keeps a dark picture apart from a dark plate. Cropping outwards leaves room for it.
    posed = posed.crop((-1, -1, posed.width + 1, posed.height + 1))
    left, top = (x0 + x1 - posed.width) // 2, (y0 + y1 - posed.height) // 2
    canvas.paste(HALO_COLOUR, (left, top), posed.getchannel("A").filter(ImageFilter.MaxFilter(3)))
    canvas.paste(posed, (left, top), posed)


@lru_cache(maxsize=512)
def plate_masks(shape: str, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """Antialiased masks (L, width x height) of a plate with its outline and without.

    Raises ValueError for an unknown shape.
    """
    masks = []
    for inset in (0.0, OUTLINE_WIDTH):
        big = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE))
        _draw_shape(ImageDraw.Draw(big), shape, big.size, inset * SUPERSAMPLE)
        masks.append(big.resize((width, height), Image.Resampling.BOX))
    return masks[0], masks[1]


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, size: tuple[int, int], inset: float) -> None:
    right, bottom = size[0] - 1, size[1] - 1
    box = (inset, inset, right - inset, bottom - inset)
    if shape in ("round", "oval"):
        draw.ellipse(box, fill=255)
    elif shape == "square":
        draw.rounded_rectangle(box, radius=CORNER_RADIUS * size[0] - inset, fill=255)
    elif shape == "diamond":
        # The inset is measured across the slanted edge.
        draw.polygon(_around(size, [(90.0 * k, 1.0) for k in range(4)], inset * 1.414), fill=255)
    elif shape == "star":
        corners = [(36.0 * k - 90, STAR_INNER_RADIUS if k % 2 else 1.0) for k in range(10)]
        draw.polygon(_around(size, corners, inset * 1.6), fill=255)
    else:
        raise ValueError(f"shape is {shape!r}, which has no plate")


def _around(
    size: tuple[int, int], corners: list[tuple[float, float]], inset: float
) -> list[tuple[float, float]]:
    """Corners given as (degrees, radius), stretched to fill the box less the inset."""
    points = [
        (radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle)))
        for angle, radius in corners
    ]
    placed = []
    for axis in (0, 1):
        values = [point[axis] for point in points]
        low, high = min(values), max(values)
        span = size[axis] - 1 - 2 * inset
        placed.append([inset + span * (value - low) / (high - low) for value in values])
    return list(zip(*placed, strict=True))


@lru_cache(maxsize=64)
def pattern_mask(pattern: str, period: int, variant: int) -> Image.Image:
    """Antialiased marks of a pattern (L), larger than a picture by two periods each way.

    `variant` turns stripes (vertical, falling, rising) and changes nothing else. Raises ValueError
    for a pattern without marks.
    """
    side = (PICTURE_SIZE + 2 * period) * SUPERSAMPLE
    y, x = np.mgrid[:side, :side] / (period * SUPERSAMPLE)
    if pattern == "striped":
        slant = x if variant == 0 else (x + (y if variant == 1 else -y)) / math.sqrt(2)
        marks = slant % 1 < 0.5
    elif pattern == "dotted":
        shifted = x + 0.5 * (np.floor(y) % 2)
        marks = np.hypot(shifted % 1 - 0.5, y % 1 - 0.5) < 0.27
    elif pattern == "checkered":
        marks = (np.floor(x) + np.floor(y)) % 2 == 0
    else:
        raise ValueError(f"pattern is {pattern!r}, which has no marks")
    big = Image.fromarray(marks.astype(np.uint8) * 255)
    return big.resize((side // SUPERSAMPLE,) * 2, Image.Resampling.BOX)

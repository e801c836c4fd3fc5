"""Tiling beside the golden data: modes of pictures, the square aspect, odd sizes and limits."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rediff_model.config import ModelConfig, VisionConfig
from rediff_model.sampling.params import Compat
from rediff_model.vision.tiling import choose_grid, cut_tiles, layout, merge

TILE, PATCH = 28, 7
VISION = VisionConfig(image_size=TILE, patch_size=PATCH)
ANYRES = ModelConfig(vision=VISION, anyres_max=4)
SQUARE = ModelConfig(vision=VISION, aspect="square")
PATCHES = (TILE // PATCH) ** 2


def noise_picture(width: int, height: int, channels: int = 3) -> np.ndarray:
    generator = np.random.default_rng(width * 1000 + height)
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_palette_picture_is_resized_as_its_colours() -> None:
    palette = Image.fromarray(noise_picture(50, 40)).quantize(16)
    colours = palette.convert("RGB")
    assert torch.equal(cut_tiles(palette, ANYRES), cut_tiles(colours, ANYRES))
    assert torch.equal(cut_tiles(colours, ANYRES, "official"), cut_tiles(colours, ANYRES))
    assert not torch.equal(cut_tiles(palette, ANYRES, "official"), cut_tiles(colours, ANYRES))


def test_transparent_picture_is_resized_as_its_colours() -> None:
    clear = Image.fromarray(noise_picture(50, 40, 4))
    assert clear.mode == "RGBA"
    colours = clear.convert("RGB")
    assert torch.equal(cut_tiles(clear, ANYRES), cut_tiles(colours, ANYRES))
    assert not torch.equal(cut_tiles(clear, ANYRES, "official"), cut_tiles(colours, ANYRES))


@pytest.mark.parametrize("compat", get_args(Compat))
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "RGBX"])
def test_every_mode_gives_rgb_tiles(mode: str, compat: Compat) -> None:
    image = Image.new("RGB", (40, 30), (255, 255, 255)).convert(mode)
    tiles = cut_tiles(image, SQUARE, compat)
    assert tiles.dtype == torch.uint8
    assert tiles.shape == (1, 3, TILE, TILE)
    assert tiles.min() >= 254


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_picture_keeps_its_greys(order: str) -> None:
    eight = noise_picture(50, 40, 1)[..., 0]
    sixteen = Image.fromarray((eight.astype(np.uint16) << 8 | 77).astype(f"{order}u2"))
    assert sixteen.mode.startswith("I;16")
    assert torch.equal(cut_tiles(sixteen, ANYRES), cut_tiles(Image.fromarray(eight), ANYRES))


def test_the_callers_picture_is_left_as_it_was() -> None:
    palette = Image.fromarray(noise_picture(50, 40)).quantize(16)
    before = palette.tobytes()
    cut_tiles(palette, ANYRES)
    assert palette.mode == "P"
    assert palette.tobytes() == before


def test_grid_shows_the_picture_centred_between_black_bars() -> None:
    white = Image.new("RGB", (3 * TILE, TILE + 8), (255, 255, 255))
    plan = layout(white.size, ANYRES)
    tiles = cut_tiles(white, ANYRES)
    grid = tiles[1:].reshape(plan.rows, plan.columns, 3, TILE, TILE)
    picture = grid.permute(0, 3, 1, 4, 2).reshape(plan.rows * TILE, plan.columns * TILE, 3)
    width, height = plan.resized
    top, left = (len(picture) - height) // 2, (picture.shape[1] - width) // 2
    assert top > 0
    inside = torch.zeros(picture.shape[:2], dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    assert (picture[inside] == 255).all()
    assert (picture[~inside] == 0).all()
    assert (tiles[0] == 255).all()


def test_square_aspect_is_one_tile_and_one_newline() -> None:
    image = Image.fromarray(noise_picture(90, 31))
    plan = layout(image.size, SQUARE)
    tiles = cut_tiles(image, SQUARE)
    squashed = np.asarray(image.resize((TILE, TILE), Image.Resampling.BICUBIC))
    assert torch.equal(tiles[0], torch.tensor(squashed).permute(2, 0, 1))
    features = torch.randn(1, PATCHES, 5)
    newline = torch.full((5,), 9.0)
    merged = merge(features, plan, newline)
    assert len(merged) == plan.tokens == PATCHES + 1
    assert torch.equal(merged, torch.cat((features[0], newline[None])))


def test_rows_of_the_grid_follow_the_base_tile_and_end_with_newlines() -> None:
    plan = layout((2 * TILE, TILE), ANYRES)
    assert (plan.columns, plan.rows) == (2, 1)
    side = TILE // PATCH
    # Each feature tells its tile, row and column.
    features = torch.stack(
        [
            torch.tensor([[tile, row, column] for row in range(side) for column in range(side)])
            for tile in range(3)
        ]
    ).float()
    merged = merge(features, plan, torch.full((3,), -1.0))
    expected = features[0].tolist()
    for row in range(side):
        expected += [[tile, row, column] for tile in (1, 2) for column in range(side)]
        expected.append([-1.0] * 3)
    assert merged.tolist() == expected


def test_a_large_map_is_shrunk_to_about_the_limit() -> None:
    size = (6 * TILE, 6 * TILE)
    lengths = [
        layout(size, ModelConfig(vision=VISION, anyres_max=limit)).tokens for limit in (36, 9, 4, 1)
    ]
    assert all(longer > shorter for longer, shorter in pairwise(lengths))
    assert lengths[0] == PATCHES + 24 * 25
    assert lengths[2] == PATCHES + 8 * 9


def test_a_small_picture_is_not_given_more_tiles_than_it_has_pixels_for() -> None:
    assert choose_grid((TILE, TILE), TILE, 6) == (1, 1)
    assert choose_grid((TILE + 1, TILE), TILE, 6) == (2, 1)
    assert choose_grid((100 * TILE, 100 * TILE), TILE, 6) == (6, 6)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    limit=st.integers(1, 9),
    patch=st.sampled_from([4, 7, 9, 14]),
    grid=st.integers(1, 6),
)
def test_any_size_gives_the_tiles_and_tokens_that_its_layout_tells(
    width: int, height: int, limit: int, patch: int, grid: int
) -> None:
    vision = VisionConfig(image_size=TILE, patch_size=patch)
    config = ModelConfig(vision=vision, anyres_max=limit, grid_side=grid)
    plan = layout((width, height), config)
    tiles = cut_tiles(Image.new("RGB", (width, height)), config)
    assert len(tiles) == plan.tiles <= 1 + grid**2
    features = torch.zeros(len(tiles), vision.patches_per_side**2, 2)
    assert len(merge(features, plan, torch.zeros(2))) == plan.tokens


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (20000, 3)])
def test_extreme_shapes_still_have_a_base_tile(size: tuple[int, int]) -> None:
    plan = layout(size, ANYRES)
    tiles = cut_tiles(Image.new("RGB", size), ANYRES)
    merged = merge(torch.zeros(len(tiles), PATCHES, 2), plan, torch.zeros(2))
    assert PATCHES <= len(merged) == plan.tokens

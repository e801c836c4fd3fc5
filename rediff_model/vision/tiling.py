"""Pictures to tiles, and the features of tiles back to one sequence (anyres, spatial unpad).

A picture is seen as a whole, squashed into the base tile, and, with `anyres_max`, once more as a
grid of tiles of its own resolution. Steps are numbered as in docs/fidelity.md.

Shape suffixes: N tiles of a picture (base first, then row by row), T side of a tile in pixels,
P patches of a tile, R and C rows and columns of the merged map, D feature size, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from torch import Tensor

    from rediff_model.config import ModelConfig
    from rediff_model.sampling.params import Compat

SHRINK_ABOVE = 1.1
"""A map is resized only if its sides exceed the limit by more than this factor."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a picture of one size becomes tiles and tokens."""

    tile: int
    """Side of a tile in pixels."""
    patches: int
    """Patches along a side of a tile."""
    columns: int
    """Tiles across; 0 when there is only the base tile."""
    rows: int
    resized: tuple[int, int]
    """Width and height of the picture within the grid."""
    top: int
    """Rows of patches cut above, and as many below, because they show padding."""
    left: int
    """Columns of patches cut on either side."""
    merged: tuple[int, int]
    """Rows and columns of the map of the grid's patches after cutting and shrinking."""

    @property
    def tiles(self) -> int:
        return 1 + self.columns * self.rows

    @property
    def tokens(self) -> int:
        """Length of the picture's sequence, newline tokens included."""
        base = self.patches**2
        if not self.columns:
            return base + 1
        rows, columns = self.merged
        return base + rows * (columns + 1)


def layout(size: tuple[int, int], config: ModelConfig) -> Layout:
    """Lay out a picture of `size` (width, height)."""
    tile, patches = config.vision.image_size, config.vision.patches_per_side
    if config.aspect == "square":
        return Layout(tile, patches, 0, 0, (tile, tile), 0, 0, (0, 0))
    columns, rows = choose_grid(size, tile, config.grid_side)
    map_columns, map_rows = columns * patches, rows * patches
    top, left = _padding(size, map_columns, map_rows)
    merged = (map_rows - 2 * top, map_columns - 2 * left)
    return Layout(
        tile,
        patches,
        columns,
        rows,
        _fit(size, columns * tile, rows * tile),
        top,
        left,
        _shrink(merged, patches, config.anyres_max),
    )


def choose_grid(size: tuple[int, int], tile: int, side: int) -> tuple[int, int]:
    """Columns and rows of tiles, each 1 to `side`, that keep most of the picture's pixels.

    Among equals the one with least empty area, then the first with columns as the outer loop.
    """
    width, height = size
    candidates = [(columns, rows) for columns in range(1, side + 1) for rows in range(1, side + 1)]

    def merit(grid: tuple[int, int]) -> tuple[int, int]:
        canvas_width, canvas_height = grid[0] * tile, grid[1] * tile
        scale = min(canvas_width / width, canvas_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas_width * canvas_height

    return max(candidates, key=merit)


def _fit(size: tuple[int, int], canvas_width: int, canvas_height: int) -> tuple[int, int]:
    """The picture's size when it fills one side of the canvas; the other side is rounded up."""
    width, height = size
    across, down = canvas_width / width, canvas_height / height
    if across < down:
        return canvas_width, min(ceil(height * across), canvas_height)
    return min(ceil(width * down), canvas_width), canvas_height


def _padding(size: tuple[int, int], map_columns: int, map_rows: int) -> tuple[int, int]:
    """Rows above and columns beside the picture in its map of patches.

    Rounded down here and up in `_fit`, so that an odd remainder keeps one row of padding.
    """
    width, height = size
    if width / height > map_columns / map_rows:
        return (map_rows - int(height * (map_columns / width))) // 2, 0
    return 0, (map_columns - int(width * (map_rows / height))) // 2


def _shrink(merged: tuple[int, int], patches: int, limit: int) -> tuple[int, int]:
    """Rows and columns when the map may hold about `limit` tiles' patches."""
    rows, columns = merged
    factor = sqrt(rows * columns / (limit * patches**2))
    if factor <= SHRINK_ABOVE:
        return merged
    return max(1, int(rows // factor)), max(1, int(columns // factor))


def cut_tiles(image: Image.Image, config: ModelConfig, compat: Compat = "default") -> Tensor:
    """The tiles of a picture, uint8 RGB [N, 3, T, T].

    Any mode is converted to RGB first, as in training; alpha is dropped. With
    `compat="official"` it is resized in its own mode: palette and 1-bit pictures by nearest
    neighbour, transparent ones with their alpha taken into account.
    """
    plan = layout(image.size, config)
    if compat == "default":
        image = to_rgb(image)
    # Pillow's default filter: bicubic, but nearest for palette and 1-bit pictures.
    tiles = [image.resize((plan.tile, plan.tile)).convert("RGB")]
    if plan.columns:
        canvas = Image.new("RGB", (plan.columns * plan.tile, plan.rows * plan.tile))
        width, height = plan.resized
        offset = ((canvas.width - width) // 2, (canvas.height - height) // 2)
        canvas.paste(image.resize(plan.resized), offset)
        tiles += [
            canvas.crop((left, top, left + plan.tile, top + plan.tile))
            for top in range(0, canvas.height, plan.tile)
            for left in range(0, canvas.width, plan.tile)
        ]
    return torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).permute(0, 3, 1, 2)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB with 8 bits a channel. Pillow would turn all but the darkest of 16 bits white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def merge(features_NPD: Tensor, plan: Layout, newline_D: Tensor) -> Tensor:
    """The sequence of a picture, [L, D]: the base tile's patches, then the rows of the map.

    Every row ends with `newline_D`. A lone base tile is followed by one newline.
    """
    base_PD = features_NPD[0]
    if not plan.columns:
        return torch.cat((base_PD, newline_D[None]))
    side = plan.patches
    # Tile row, tile column, row and column in the tile, feature.
    grid = features_NPD[1:].reshape(plan.rows, plan.columns, side, side, -1)
    map_DRC = grid.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2)
    map_DRC = map_DRC[
        :, plan.top : map_DRC.shape[1] - plan.top, plan.left : map_DRC.shape[2] - plan.left
    ]
    if map_DRC.shape[1:] != plan.merged:
        map_DRC = interpolate(map_DRC[None], plan.merged, mode="bilinear")[0]
    newlines_DR1 = newline_D[:, None, None].expand(-1, map_DRC.shape[1], 1)
    rows_LD = torch.cat((map_DRC, newlines_DR1), dim=2).flatten(1).transpose(0, 1)
    return torch.cat((base_PD, rows_LD))

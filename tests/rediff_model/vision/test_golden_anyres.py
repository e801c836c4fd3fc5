"""Tiles, grids and merged sequences against those of the official implementation."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from goldens_dir import GOLDENS, read_json
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from rediff_model.config import LanguageConfig, ModelConfig, VisionConfig
from rediff_model.model import CaptionModel
from rediff_model.vision.tiling import cut_tiles, layout, merge

META = read_json("anyres/meta.json")
TINY_META = META["tiny56"]
PILLOW_13 = read_json("anyres/pillow13.json")
IMAGES = [pytest.param(case, id=case["key"]) for case in TINY_META["images"]]
REAL_IMAGES = [pytest.param(case, id=case["key"]) for case in META["real384"]["images"]]
TOLERANCE = 5e-5


def known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values that a configuration class has fields for."""
    fields = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return {name: value for name, value in values.items() if name in fields}


TINY = ModelConfig(
    language=LanguageConfig(**known(LanguageConfig, TINY_META["llada_config"])),
    vision=VisionConfig(**known(VisionConfig, TINY_META["siglip_config"])),
    mask_token_id=1,
    suppressed_token_ids=(),
    stop_token_id=2,
)
REAL = ModelConfig()


@pytest.fixture(scope="module")
def tiny_arrays() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / "anyres" / TINY_META["arrays"]))


@pytest.fixture(scope="module")
def pillow_13_arrays() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDENS / "anyres" / PILLOW_13["arrays"]))


@pytest.fixture(scope="module")
def model() -> CaptionModel:
    """The tiny model with all of the recorded weights; a missing or extra tensor is an error."""
    model = CaptionModel(TINY)
    model.load_state_dict(load_file(GOLDENS / "anyres" / TINY_META["weights"]))
    return model.eval()


def open_picture(case: dict[str, Any]) -> Image.Image:
    image = Image.open(GOLDENS / "anyres" / case["png"])
    image.load()
    return image


@pytest.mark.parametrize("case", IMAGES)
def test_golden_tiles(
    case: dict[str, Any],
    tiny_arrays: dict[str, np.ndarray],
    pillow_13_arrays: dict[str, np.ndarray],
) -> None:
    name = f"{case['key']}/tiles_u8"
    expected = pillow_13_arrays.get(name, tiny_arrays[name])
    image = open_picture(case)
    assert list(image.size) == case["size"]
    tiles = cut_tiles(image, TINY, "default" if case["converted_to_rgb_first"] else "official")
    plan = layout(image.size, TINY)
    assert len(tiles) == plan.tiles == case["n_tiles"]
    assert (plan.columns, plan.rows) == (case["grid_w"], case["grid_h"])
    np.testing.assert_array_equal(tiles.numpy(), expected)


@pytest.mark.parametrize("case", IMAGES)
def test_golden_merged(
    case: dict[str, Any], tiny_arrays: dict[str, np.ndarray], model: CaptionModel
) -> None:
    key = case["key"]
    tiles = torch.from_numpy(tiny_arrays[f"{key}/tiles_u8"])
    plan = layout(tuple(case["size"]), TINY)
    with torch.inference_mode():
        encoded = model.encode_tiles(tiles)
        (merged,) = model.encode_images([tiles], [plan])
    close(encoded, tiny_arrays[f"{key}/encoded"])
    close(merged, tiny_arrays[f"{key}/merged"])
    assert plan.merged == (case["merged_rows"], case["merged_cols"])
    assert plan.tokens == len(merged) == case["n_image_tokens"]


@pytest.mark.parametrize("case", IMAGES)
def test_golden_prompt_rows(
    case: dict[str, Any], tiny_arrays: dict[str, np.ndarray], model: CaptionModel
) -> None:
    ids = TINY_META["input_ids"]
    split = next(place for place, token in enumerate(ids) if token < 0)
    features = torch.from_numpy(tiny_arrays[f"{case['key']}/merged"])
    with torch.inference_mode():
        rows = model.embed_prompt(ids[:split], features, ids[split + 1 :])
    assert len(rows) == case["total_sequence"]
    text_rows = torch.cat((rows[:split], rows[split + len(features) :]))
    close(text_rows, tiny_arrays[f"{case['key']}/inputs_embeds"])
    torch.testing.assert_close(rows[split : split + len(features)], features, atol=0, rtol=0)


def test_golden_normalised_values(tiny_arrays: dict[str, np.ndarray], model: CaptionModel) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(
        model.tower.normalise(levels).numpy(), tiny_arrays["value_table_f32"]
    )


@pytest.mark.parametrize("case", REAL_IMAGES)
def test_golden_real_tiles(case: dict[str, Any]) -> None:
    recorded = case | PILLOW_13["real384"].get(case["key"], {})
    tiles = cut_tiles(open_picture(case), REAL, "official")
    assert list(tiles.shape) == [case["n_tiles"], *case["tile_shape"]]
    per_tile = [hashlib.sha256(tile.contiguous().numpy().tobytes()).hexdigest() for tile in tiles]
    assert per_tile == recorded["per_tile_u8_sha256"]


def test_golden_size_table() -> None:
    """Grid, resized size, merged map and token count of every recorded picture size.

    The recorded `downsampled` is left out: it is a note of the recording, and says false where a
    map of 162 x 162 became one of 54 x 54.
    """
    table = META["real384_size_table"]
    ours = []
    for row in table:
        plan = layout(tuple(row["size"]), REAL)
        ours.append(
            {
                "size": row["size"],
                "grid_w": plan.columns,
                "grid_h": plan.rows,
                "n_tiles": plan.tiles,
                "resized": list(plan.resized),
                "merged_rows": plan.merged[0],
                "merged_cols": plan.merged[1],
                "n_tokens": plan.tokens,
                "downsampled": row["downsampled"],
            }
        )
    assert table
    assert ours == table


@pytest.mark.parametrize("size", META["provenance384"]["sizes"], ids=str)
def test_golden_provenance(size: list[int]) -> None:
    """Every merged token comes from the tile, row and column that the official one comes from."""
    name = f"{size[0]}x{size[1]}"
    expected = np.load(GOLDENS / "anyres" / META["provenance384"]["arrays"])[name]
    plan = layout((size[0], size[1]), REAL)
    side = torch.arange(plan.patches, dtype=torch.float32)
    row, column = side.repeat_interleave(plan.patches), side.repeat(plan.patches)
    features = torch.stack(
        [
            torch.stack((torch.full_like(row, tile), row, column, torch.ones_like(row)), dim=1)
            for tile in range(plan.tiles)
        ]
    )
    close(merge(features, plan, torch.full((4,), -1.0)), expected)


def close(actual: Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(actual, torch.from_numpy(expected), atol=TOLERANCE, rtol=0)

"""The towers beside the golden data: EfficientNet-Lite0 and its conversion, building, interface."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rediff_model.config import ConfigError, VisionConfig
from rediff_model.vision.efficientnet import (
    DEEP_CHANNELS,
    FEATURE_CHANNELS,
    LIMIT,
    POSITION_CHANNELS,
    TRUNK_CHANNELS,
    EfficientNetTower,
    position_code,
)
from rediff_model.vision.siglip import SiglipTower, build_tower
from scripts.convert_efficientnet import BATCH_NORM_EPS, load_published, measure, tower_config

SIDE = 128
TINY_SIGLIP = VisionConfig(
    image_size=28,
    patch_size=14,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
)
# Blocks, kernel, stride, expansion, channels in and out of every stage, from the paper.
ARCHITECTURE = [
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
]


class Published:
    """Random weights under the published names, and the network that they are for, batch norms
    and all, written down a second time."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.weights: dict[str, Tensor] = {"_fc.weight": torch.ones(2), "_fc.bias": torch.ones(2)}
        self._convolution("_conv_stem", "_bn0", 3, 32, 3)
        self.blocks: list[tuple[int, int, int, int]] = []
        for repeats, kernel, stride, expansion, inputs, outputs in ARCHITECTURE:
            for repeat in range(repeats):
                prefix = f"_blocks.{len(self.blocks)}."
                source = inputs if repeat == 0 else outputs
                wide = source * expansion
                if expansion > 1:
                    self._convolution(f"{prefix}_expand_conv", f"{prefix}_bn0", source, wide, 1)
                self._convolution(f"{prefix}_depthwise_conv", f"{prefix}_bn1", 1, wide, kernel)
                self._convolution(f"{prefix}_project_conv", f"{prefix}_bn2", wide, outputs, 1)
                self.blocks.append((kernel, stride if repeat == 0 else 1, source, outputs))
        self._convolution("_conv_head", "_bn1", 320, 1280, 1)

    def _convolution(self, name: str, norm: str, inputs: int, outputs: int, kernel: int) -> None:
        scale = (inputs * kernel**2) ** -0.5
        self.weights[f"{name}.weight"] = scale * self._draw(outputs, inputs, kernel, kernel)
        self.weights[f"{norm}.weight"] = 1 + 0.1 * self._draw(outputs)
        self.weights[f"{norm}.bias"] = 0.5 + 0.3 * self._draw(outputs)
        self.weights[f"{norm}.running_mean"] = 0.1 * self._draw(outputs)
        self.weights[f"{norm}.running_var"] = 0.5 + self._draw(outputs).square()
        self.weights[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _apply(self, values: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        kernel, size = weight.shape[-1], values.shape[-1]
        # TensorFlow's SAME padding, for any size.
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding = (total // 2, total - total // 2) * 2
        groups = len(weight) if weight.shape[1] == 1 else 1
        values = functional.conv2d(
            functional.pad(values, padding), weight, stride=stride, groups=groups
        )
        statistics = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (self.weights[f"{norm}.{n}"] for n in statistics)
        return functional.batch_norm(
            values, mean, variance, scale, shift, training=False, eps=BATCH_NORM_EPS
        )

    def maps(self, pixels: Tensor) -> dict[str, Tensor]:
        values = functional.relu6(self._apply(pixels, "_conv_stem", "_bn0", stride=2))
        after = {}
        for number, (_, stride, inputs, outputs) in enumerate(self.blocks):
            prefix = f"_blocks.{number}."
            before = values
            if f"{prefix}_expand_conv.weight" in self.weights:
                values = functional.relu6(
                    self._apply(values, f"{prefix}_expand_conv", f"{prefix}_bn0")
                )
            values = functional.relu6(
                self._apply(values, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride)
            )
            values = self._apply(values, f"{prefix}_project_conv", f"{prefix}_bn2")
            if stride == 1 and inputs == outputs:
                values = values + before
            after[number] = values
        return {"stride8": after[4], "stride16": after[10], "stride32": after[15]}


@pytest.fixture(scope="module")
def published() -> Published:
    return Published()


@pytest.fixture
def tower(published: Published) -> EfficientNetTower:
    tower = EfficientNetTower(tower_config(SIDE))
    load_published(tower, published.weights)
    return tower.eval()


@pytest.fixture
def pictures() -> Tensor:
    return torch.randint(
        0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def test_folded_trunk_equals_the_published_network(
    tower: EfficientNetTower, published: Published, pictures: Tensor
) -> None:
    pixels = tower.normalise(pictures)
    assert pixels.min() == -127 / 128
    assert pixels.max() == 1
    expected = published.maps(pixels)
    maps = tower.maps(pixels)
    assert maps.keys() == expected.keys()
    for name, values in maps.items():
        torch.testing.assert_close(values, expected[name], atol=1e-4, rtol=1e-4, msg=name)
    assert 0.01 < maps["stride32"].std() < 6


def test_conversion_names_what_is_left_over_or_missing(published: Published) -> None:
    tower = EfficientNetTower(tower_config(SIDE))
    with pytest.raises(ValueError, match="_conv_tail"):
        load_published(tower, published.weights | {"_conv_tail.weight": torch.ones(1)})
    lacking = {k: v for k, v in published.weights.items() if k != "_bn1.running_mean"}
    with pytest.raises(KeyError, match=r"_bn1\.running_mean"):
        load_published(tower, lacking)


def test_measured_statistics_standardise_the_features(
    tower: EfficientNetTower, pictures: Tensor
) -> None:
    measure(tower, list(pictures))
    with torch.inference_mode():
        features = tower(tower.normalise(pictures))[..., :TRUNK_CHANNELS]
    assert features.mean(dim=(0, 1)).abs().max() < 1e-3
    deviation = features.std(dim=(0, 1), correction=0)
    assert features.abs().max() <= LIMIT
    assert deviation.max() < 1.001
    assert deviation.median() == pytest.approx(1, abs=1e-3)


def test_features_hold_each_cells_channels_in_reading_order(
    tower: EfficientNetTower, pictures: Tensor
) -> None:
    with torch.inference_mode():
        pixels = tower.normalise(pictures)
        maps, features = tower.maps(pixels), tower(pixels)
    cells = tower.patches_per_side
    assert cells == 2
    assert features.shape == (2, cells**2, FEATURE_CHANNELS)
    row, column = 1, 0
    cell = features[1, row * cells + column]
    window = (1, slice(None), slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
    side = 2 * cells
    middle = maps["stride16"].reshape(2, -1, side, 2, side, 2).mean(dim=(3, 5))
    expected = torch.cat((maps["stride32"][window].flatten(), middle[window].flatten()))
    assert len(maps["stride32"][window].flatten()) == 4 * DEEP_CHANNELS
    torch.testing.assert_close(cell[:TRUNK_CHANNELS], expected.clamp(-LIMIT, LIMIT))
    torch.testing.assert_close(
        cell[-POSITION_CHANNELS:], position_code(cells)[row * cells + column]
    )


def test_position_code_is_linear_in_the_row_and_the_column_of_each_cell() -> None:
    side = 7
    code = position_code(side)
    rows = functional.one_hot(torch.arange(side).repeat_interleave(side)).float()
    columns = functional.one_hot(torch.arange(side).repeat(side)).float()
    targets = torch.cat((rows, columns), dim=1)
    design = torch.cat((code, torch.ones(side**2, 1)), dim=1)
    found = design @ torch.linalg.lstsq(design, targets, driver="gelsd").solution
    torch.testing.assert_close(found, targets, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", 100), ("patch_size", 16), ("hidden_size", 1280)]
)
def test_efficientnet_names_a_size_that_it_cannot_have(name: str, value: int) -> None:
    sizes: dict[str, Any] = {"image_size": 128, "patch_size": 64, "hidden_size": FEATURE_CHANNELS}
    sizes |= {name: value}
    with pytest.raises(ConfigError, match=rf"got {name} {value}"):
        build_tower(VisionConfig(tower="efficientnet_lite0", **sizes))


@pytest.mark.parametrize(("patch", "side"), [(96, 576), (128, 256)])
def test_a_larger_cell_says_as_much(patch: int, side: int) -> None:
    """Maps of a larger picture are averaged to two vectors a side of a cell."""
    config = VisionConfig("efficientnet_lite0", side, patch, FEATURE_CHANNELS)
    tower = build_tower(config)
    assert isinstance(tower, EfficientNetTower)
    cells = side // patch
    maps = {
        name: torch.rand((1, channels, side // stride, side // stride))
        for name, channels, stride in (("stride16", 112, 16), ("stride32", DEEP_CHANNELS, 32))
    }
    raw = tower.raw(maps)
    assert raw.shape == (1, cells**2, TRUNK_CHANNELS)
    constant = {name: torch.ones_like(value) for name, value in maps.items()}
    torch.testing.assert_close(tower.raw(constant), torch.ones_like(raw))
    # Of the left upper quarter of the first cell: channel 0 of the finer map.
    quarter = maps["stride16"][0, 0, : patch // 32, : patch // 32].mean()
    torch.testing.assert_close(raw[0, 0, 4 * DEEP_CHANNELS], quarter)


def test_classes_need_their_channels_and_rows() -> None:
    sizes: dict[str, Any] = {"image_size": 128, "patch_size": 64}
    with pytest.raises(ConfigError, match=f"hidden_size {FEATURE_CHANNELS + 2}, got hidden_size"):
        build_tower(
            VisionConfig(
                "efficientnet_lite0", hidden_size=FEATURE_CHANNELS, class_rows=(1, 2), **sizes
            )
        )
    with pytest.raises(ConfigError, match=r"class_rows .* got \[1, 0\]"):
        VisionConfig("efficientnet_lite0", class_rows=(1, 0), **sizes)
    with pytest.raises(ConfigError, match=r"class_rows .* for siglip"):
        VisionConfig(class_rows=(1,))


def test_frozen_trunk_has_no_gradients_and_a_plain_state(tower: EfficientNetTower) -> None:
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert "position_PF" not in tower.state_dict()
    assert "feature_mean_F" in tower.state_dict()


@pytest.mark.parametrize("config", [TINY_SIGLIP, tower_config(64)], ids=lambda c: str(c.tower))
def test_tower_built_on_the_meta_device_equals_one_built_directly(config: VisionConfig) -> None:
    direct = build_tower(config).eval()
    with torch.device("meta"):
        late = build_tower(config)
    late.load_state_dict(direct.state_dict(), assign=True)
    late.eval()
    tiles = torch.randint(0, 256, (2, 3, config.image_size, config.image_size), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(
            late(late.normalise(tiles)), direct(direct.normalise(tiles)), atol=0, rtol=0
        )


def test_siglip_has_the_published_names_and_one_layer_less() -> None:
    tower = SiglipTower(TINY_SIGLIP)
    names = tower.state_dict().keys()
    layers = {name.split(".")[4] for name in names if ".layers." in name}
    assert layers == {"0", "1"}
    assert all(name.startswith("vision_tower.vision_model.") for name in names)
    assert "vision_tower.vision_model.post_layernorm.weight" in names
    assert not any("head" in name or "position_ids" in name for name in names)


def test_final_norm_of_siglip_is_not_applied() -> None:
    tower = SiglipTower(TINY_SIGLIP).eval()
    tiles = torch.randint(0, 256, (1, 3, 28, 28), dtype=torch.uint8)
    with torch.inference_mode():
        before = tower(tower.normalise(tiles))
        weights = tower.state_dict()
        weights["vision_tower.vision_model.post_layernorm.weight"].zero_()
        after = tower(tower.normalise(tiles))
    torch.testing.assert_close(before, after, atol=0, rtol=0)


def test_half_precision_tower_takes_uint8_tiles() -> None:
    tower = SiglipTower(TINY_SIGLIP).eval().bfloat16()
    with torch.inference_mode():
        features = tower(tower.normalise(torch.zeros(1, 3, 28, 28, dtype=torch.uint8)))
    assert features.dtype == torch.bfloat16
    assert features.isfinite().all()


def test_embedded_tower_needs_neither_transformers_nor_torchvision() -> None:
    code = (
        "import sys; from rediff_model.vision.siglip import build_tower; "
        "from scripts.convert_efficientnet import tower_config; build_tower(tower_config(64)); "
        "print(sorted({'transformers', 'torchvision'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"

"""The EfficientNet-Lite0 tower of the embedded model: a frozen trunk and fixed positions.

The trunk is EfficientNet-Lite0 (Tan and Le 2019, the Lite variant without squeeze-excitation and
with ReLU6) with its batch norms folded into the convolutions.

Shape suffixes: N pictures, C channels, H and W rows and columns of a map, T side of a picture in
pixels, P cells of a picture, F feature channels, K classes, R rows of the classifier.
"""

from __future__ import annotations

from itertools import pairwise
from math import pi, sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from rediff_model.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rediff_model.config import VisionConfig

STRIDE = 64
"""Pixels a feature cell, in the usual resolution."""
MIDDLE_STRIDE, DEEP_STRIDE = 16, 32
"""Pixels a cell of the maps that features are made of."""
POSITION_FREQUENCIES = 8
DEEP_CHANNELS = 320
"""Channels of the stride-32 map."""
MIDDLE_CHANNELS = 112
"""Channels of the stride-16 map."""
POSITION_CHANNELS = 4 * POSITION_FREQUENCIES
TRUNK_CHANNELS = 4 * (DEEP_CHANNELS + MIDDLE_CHANNELS)
HEAD_CHANNELS = 1280
"""Channels that EfficientNet's classifier reads."""
SHARE_SCALE = 8.0
"""Makes a class that fills its cell count as much as the other channels may."""
LIMIT = 8.0
"""Deviations: a few channels fire rarely and very strongly."""
FEATURE_CHANNELS = TRUNK_CHANNELS + POSITION_CHANNELS
"""What a `VisionConfig` for this tower has as its hidden_size."""

_EXPANSION = 6
_STAGES = (
    # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, _EXPANSION, 24),
    (2, 5, 2, _EXPANSION, 40),
    (3, 3, 2, _EXPANSION, 80),
    (3, 5, 1, _EXPANSION, 112),
    (4, 5, 2, _EXPANSION, 192),
    (1, 3, 1, _EXPANSION, 320),
)
_STEM_CHANNELS = 32
_MIDDLE_STAGE = 4
LATE_WEIGHTS = (
    *(f"stages.{i}." for i in range(_MIDDLE_STAGE + 1, len(_STAGES))),
    "feature_",
    "classifier.",
)
"""How the names of weights begin that the stride-16 map does not depend on."""
_MAP_STAGES = {2: "stride8", _MIDDLE_STAGE: "stride16", 6: "stride32"}


class Block(nn.Module):
    """An inverted bottleneck: expand, depthwise convolution, project, and a shortcut if it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = nn.Conv2d(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride, groups=wide)
        self.project = nn.Conv2d(wide, outputs, 1)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, map_NCHW: Tensor) -> Tensor:
        wide_NCHW = map_NCHW
        if self.expand is not None:
            wide_NCHW = functional.relu6(self.expand(wide_NCHW))
        wide_NCHW = functional.relu6(convolve_same(self.depthwise, wide_NCHW))
        output_NCHW: Tensor = self.project(wide_NCHW)
        return output_NCHW + map_NCHW if self.shortcut else output_NCHW


class CellClassifier(nn.Module):
    """What follows EfficientNet's trunk, cell by cell: the probability of every class.

    A class has one row or more, of which the best speaks for it; one more row, the last, is for
    cells in which there is nothing.
    """

    owner_R: Tensor

    def __init__(self, class_rows: Sequence[int]) -> None:
        super().__init__()
        self.head = nn.Conv2d(DEEP_CHANNELS, HEAD_CHANNELS, 1)
        self.rows = nn.Linear(HEAD_CHANNELS, sum(class_rows) + 1)
        self.classes = len(class_rows)
        with torch.device("cpu"):
            owner_R = torch.arange(self.classes + 1).repeat_interleave(
                torch.tensor([*class_rows, 1])
            )
        self.register_buffer("owner_R", owner_R, persistent=False)

    def seen(self, deep_NCHW: Tensor) -> Tensor:
        """Every cell of the stride-32 map as the rows read it, [N, C, H, W]."""
        return functional.relu6(self.head(deep_NCHW))

    @staticmethod
    def smooth(seen_NCHW: Tensor) -> Tensor:
        """Means over 3 x 3 cells, [N, H, W, C]: about what a small thing covers."""
        mean_NCHW: Tensor = functional.avg_pool2d(seen_NCHW, 3, 1, 1, count_include_pad=False)
        return mean_NCHW.permute(0, 2, 3, 1)

    def read(self, seen: Tensor) -> Tensor:
        """Logits [..., K + 1] of the classes and of nothing, from [..., C]."""
        rows_TR: Tensor = self.rows(seen).float().flatten(0, -2)
        out_TK = rows_TR.new_full((len(rows_TR), self.classes + 1), -torch.inf)
        owner_TR = self.owner_R.expand(len(rows_TR), -1)
        out_TK = out_TK.scatter_reduce(1, owner_TR, rows_TR, "amax", include_self=False)
        return out_TK.view(*seen.shape[:-1], -1)

    def forward(self, deep_NCHW: Tensor) -> Tensor:
        """Logits, [N, H, W, K + 1], of every cell of the stride-32 map."""
        return self.read(self.smooth(self.seen(deep_NCHW)))


class EfficientNetTower(nn.Module):
    """Pictures to one feature vector a cell: what is there and where it is.

    A cell is 64 pixels wide or another multiple of 32: the tower looks at a picture of twice the
    usual resolution or more, because small things are what it misses, and says it in as few
    vectors. A vector holds the cell's 2 x 2 vectors of the stride-32 map (4 x 320 channels) and of
    the stride-16 map (4 x 112), both averaged to two vectors a side, standardised by stored
    statistics and clamped, and a sine code of row and column (32). With `class_rows`, also the
    share that each class has of the cell, by a classifier of the stride-32 map.

    Raises:
        ConfigError: patch_size is not a multiple of 32 from 64 on, image_size not one of
            patch_size, or hidden_size is not what this tower gives.
    """

    feature_mean_F: Tensor
    feature_scale_F: Tensor
    position_PF: Tensor

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        wanted = FEATURE_CHANNELS + len(config.class_rows)
        patch = config.patch_size
        for name, fits in (
            ("patch_size", patch >= STRIDE and patch % DEEP_STRIDE == 0),
            ("image_size", config.image_size % patch == 0),
            ("hidden_size", config.hidden_size == wanted),
        ):
            if not fits:
                raise ConfigError(
                    f"EfficientNet-Lite0 needs a patch_size of {STRIDE} or more that is a multiple "
                    f"of {DEEP_STRIDE}, image_size a multiple of patch_size and hidden_size "
                    f"{wanted}, got {name} {getattr(config, name)}"
                )
        self.config = config
        self.stem = nn.Conv2d(3, _STEM_CHANNELS, 3, 2)
        widths = (_STEM_CHANNELS, *(stage[-1] for stage in _STAGES))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    Block(outputs if i else inputs, outputs, kernel, 1 if i else stride, expansion)
                    for i in range(blocks)
                )
            )
            for (inputs, outputs), (blocks, kernel, stride, expansion, _) in zip(
                pairwise(widths), _STAGES, strict=True
            )
        )
        self.classifier = CellClassifier(config.class_rows) if config.class_rows else None
        self.register_buffer("feature_mean_F", torch.zeros(TRUNK_CHANNELS))
        self.register_buffer("feature_scale_F", torch.ones(TRUNK_CHANNELS))
        self.register_buffer(
            "position_PF", position_code(config.patches_per_side), persistent=False
        )
        self.requires_grad_(False)

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def patches_per_side(self) -> int:
        return self.config.patches_per_side

    def normalise(self, tiles_N3TT: Tensor) -> Tensor:
        """Grey levels 0 to 255 (uint8) to the range the weights were trained on."""
        return (tiles_N3TT.to(self.stem.weight.dtype) - 127) / 128

    def forward(self, pixels_N3TT: Tensor) -> Tensor:
        """Features, [N, P, F], of normalised pictures."""
        return self.features(self.maps(pixels_N3TT))

    def features(self, maps: dict[str, Tensor]) -> Tensor:
        """Features, [N, P, F], of the maps `stride16` and `stride32`."""
        features_NPF = self.placed(maps)
        if self.classifier is None:
            return features_NPF
        shares_NPK = self.shares(self.classifier(maps["stride32"])).to(features_NPF.dtype)
        return torch.cat((features_NPF, SHARE_SCALE * shares_NPK), dim=-1)

    def placed(self, maps: dict[str, Tensor]) -> Tensor:
        """The features, [N, P, F], without the classes: the trunk's and the position's."""
        features_NPF = (self.raw(maps) - self.feature_mean_F) * self.feature_scale_F
        position_PF = self.position_PF.to(features_NPF.dtype)
        return torch.cat(
            (
                features_NPF.clamp(-LIMIT, LIMIT),
                position_PF.expand(len(features_NPF), -1, -1),
            ),
            dim=-1,
        )

    def shares(self, logits_NHWK: Tensor) -> Tensor:
        """Of every feature cell the part each class has of it, [N, P, K], 0 to 1; the rest is
        nothing's."""
        share_NKHW = logits_NHWK.softmax(-1)[..., :-1].permute(0, 3, 1, 2)
        share_NKHW = functional.avg_pool2d(share_NKHW, self.config.patch_size // DEEP_STRIDE)
        return share_NKHW.flatten(2).transpose(1, 2)

    def deepened(self, stride16_NCHW: Tensor) -> dict[str, Tensor]:
        """The maps `stride16`, as given, and `stride32`, which the last stages make of it."""
        map_NCHW = stride16_NCHW
        for stage in self.late_stages():
            map_NCHW = stage(map_NCHW)
        return {"stride16": stride16_NCHW, "stride32": map_NCHW}

    def late_stages(self) -> nn.ModuleList:
        """The stages behind the stride-16 map."""
        return self.stages[_MIDDLE_STAGE + 1 :]

    def late_products(self) -> list[nn.Parameter]:
        """The weights of the late stages but for the depthwise kernels, whose gradient takes most
        of a step on a CPU."""
        named = self.late_stages().named_parameters()
        return [value for name, value in named if ".depthwise." not in name]

    @torch.no_grad()
    def standardise(self, cells: Iterable[Tensor]) -> None:
        """Set the statistics to those of `raw` features [T, F], which come in parts."""
        count, total_F = 0, torch.zeros_like(self.feature_mean_F, dtype=torch.float64)
        squares_F = torch.zeros_like(total_F)
        for part_TF in cells:
            wide_TF = part_TF.double()
            total_F += wide_TF.sum(0)
            squares_F += wide_TF.square().sum(0)
            count += len(part_TF)
        mean_F = total_F / count
        deviation_F = (squares_F / count - mean_F.square()).clamp_min(0).sqrt()
        # A channel that never fires on these pictures is left alone rather than blown up.
        scale_F = 1 / deviation_F.clamp_min(0.05 * deviation_F.median())
        self.feature_mean_F.copy_(mean_F)
        self.feature_scale_F.copy_(scale_F)

    def maps(self, pixels_N3TT: Tensor) -> dict[str, Tensor]:
        """The trunk's maps, [N, C, H, W]: `stride8` (40 channels), `stride16` (112) and
        `stride32` (320)."""
        map_NCHW = pixels_N3TT.contiguous(memory_format=torch.channels_last)
        map_NCHW = functional.relu6(convolve_same(self.stem, map_NCHW))
        maps: dict[str, Tensor] = {}
        for number, stage in enumerate(self.stages):
            map_NCHW = stage(map_NCHW)
            if number in _MAP_STAGES:
                maps[_MAP_STAGES[number]] = map_NCHW
        return maps

    def raw(self, maps: dict[str, Tensor]) -> Tensor:
        """The trunk's part of the features before standardising, [N, P, F]."""
        side = 2 * self.patches_per_side
        both = (
            functional.pixel_unshuffle(functional.adaptive_avg_pool2d(maps[name], side), 2)
            for name in ("stride32", "stride16")
        )
        return torch.cat(tuple(both), dim=1).flatten(2).transpose(1, 2)


def convolve_same(convolution: nn.Conv2d, map_NCHW: Tensor) -> Tensor:
    """Convolve with TensorFlow's SAME padding, which puts the odd pixel below and to the right.

    For even sides, as pictures of a multiple of 32 have at every stride of 2.
    """
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    if before == after:
        return functional.conv2d(
            map_NCHW, convolution.weight, convolution.bias, stride, before, 1, convolution.groups
        )
    padded: Tensor = convolution(functional.pad(map_NCHW, (before, after, before, after)))
    return padded


def position_code(side: int) -> Tensor:
    """Sines and cosines of the row and the column of every cell of a side x side grid, [P, F].

    Half-period frequencies from 1 up tell all of the 7 rows of a 224-pixel picture apart; the
    channels have about unit variance, as the standardised features have. Always real numbers on
    the CPU, even while a module is built on the meta device: checkpoints do not hold them.
    """
    with torch.device("cpu"):
        centres = (torch.arange(side, dtype=torch.float32) + 0.5) / side
        angles = pi * centres[:, None] * torch.arange(1, POSITION_FREQUENCIES + 1)
    code = sqrt(2) * torch.cat((angles.sin(), angles.cos()), dim=1)
    rows = code[:, None].expand(side, side, -1)
    columns = code[None].expand(side, side, -1)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)

"""ImageNet's own classifier, and which of its classes are the atlas's names.

Shape suffixes: N pictures, G cells a side of the stride-32 map, C channels, S stickers, I
ImageNet's classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import relu6

from rediff_model.config import VisionConfig
from rediff_model.vision.efficientnet import (
    DEEP_CHANNELS,
    FEATURE_CHANNELS,
    HEAD_CHANNELS,
    STRIDE,
    EfficientNetTower,
)
from training.stickers.graph import PICTURE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.stickers.atlas import Atlas
    from training.stickers.graph import Scene

FILE = Path(__file__).parent / "imagenet.safetensors"
"""The classifier, by `scripts/convert_efficientnet.py --classifier`."""
CLASSES = 1000
INSIDE = 0.8
"""Of a plate's sides, the middle part that is looked at: its picture, and little of its rim."""

IMAGENET: dict[str, tuple[int, ...]] = {
    "accordion": (401,),
    "airplane": (404, 895),
    "alarm clock": (409, 530),
    "ambulance": (407,),
    "american football": (768,),
    "ant": (310,),
    "apple": (948,),
    "axe": (596,),
    "backpack": (414,),
    "banana": (954,),
    "basketball": (430,),
    "bathtub": (435, 876),
    "bear": (294, 295),
    "bee": (309,),
    "bicycle": (444, 671),
    "broccoli": (937,),
    "bucket": (463,),
    "bus": (654, 779, 874),
    "butterfly": (*range(321, 327),),
    "camel": (354,),
    "camera": (732, 759),
    "castle": (483,),
    "cat": (*range(281, 286),),
    "cow": (345, 346, 347),
    "crab": (118, 119, 120, 121, 125),
    "crocodile": (49, 50),
    "dog": (*range(151, 269),),
    "drum": (541,),
    "duck": (97,),
    "ear of corn": (987, 998),
    "elephant": (101, 385, 386),
    "envelope": (549,),
    "fire engine": (555,),
    "flamingo": (130,),
    "fox": (277, 278, 279, 280),
    "frog": (30, 31, 32),
    "guitar": (402, 546),
    "hamburger": (933,),
    "hammer": (587,),
    "hedgehog": (334,),
    "horse": (339,),
    "ice cream cone": (928,),
    "kangaroo": (104,),
    "koala": (105,),
    "ladybug": (301,),
    "laptop": (620, 681),
    "lemon": (951,),
    "lion": (291,),
    "monkey": (*range(370, 383),),
    "motorcycle": (665, 670),
    "mushroom": (947, 992, 997),
    "orangutan": (365,),
    "otter": (360,),
    "owl": (24,),
    "panda": (388,),
    "parrot": (87, 88, 89, 90),
    "peacock": (84,),
    "penguin": (145,),
    "pig": (341, 342),
    "pineapple": (953,),
    "police car": (734,),
    "pretzel": (932,),
    "rabbit": (330, 331, 332),
    "rocket": (657, 744, 812),
    "sailboat": (484, 780, 871, 914),
    "saxophone": (776,),
    "shark": (2, 3, 4),
    "sheep": (348, 349),
    "slice of pizza": (963,),
    "snail": (113,),
    "snake": (*range(52, 69),),
    "soccer ball": (805,),
    "spider": (*range(72, 78),),
    "steam locomotive": (820,),
    "strawberry": (949,),
    "taxi": (468,),
    "teapot": (849,),
    "television": (851,),
    "tiger": (292,),
    "tractor": (866,),
    "traffic light": (920,),
    "turtle": (33, 34, 35, 36, 37),
    "umbrella": (879,),
    "volcano": (980,),
    "whale": (147, 148),
    "zebra": (340,),
}
"""The classes of ILSVRC 2012, by their usual numbers from 0, that show what a name says. The other
names of the atlas have none."""
NAMES = tuple(IMAGENET)


@dataclass(frozen=True, slots=True)
class Plates:
    """The stickers of some pictures."""

    picture_S: Tensor
    """Which picture a sticker is in."""
    share_SGG: Tensor
    """How much of what is looked at lies in each cell; sums to 1."""
    name_S: Tensor
    """Into the atlas's names."""
    drawing_S: Tensor
    """Which drawing of the atlas it is, by vendor and name."""

    @classmethod
    def of(cls, scenes: Sequence[Scene], side: int, atlas: Atlas) -> Self:
        """On a map of side x side cells."""
        found = [(row, sticker) for row, scene in enumerate(scenes) for sticker in scene.stickers]
        names = torch.tensor([atlas.names.index(sticker.name) for _, sticker in found])
        vendors = torch.tensor([atlas.vendors.index(sticker.vendor) for _, sticker in found])
        return cls(
            torch.tensor([row for row, _ in found]),
            torch.from_numpy(
                np.array([_share(sticker.box, side) for _, sticker in found], dtype=np.float32)
            ),
            names,
            vendors * len(atlas.names) + names,
        )

    def to(self, device: torch.device) -> Self:
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))


class Classifier(nn.Module):
    """EfficientNet-Lite0 behind the stride-16 map, as published: late stages, a product per cell,
    a mean over cells, a product."""

    def __init__(self) -> None:
        super().__init__()
        tower = VisionConfig("efficientnet_lite0", STRIDE, STRIDE, FEATURE_CHANNELS)
        self.late = EfficientNetTower(tower).late_stages()
        self.head = nn.Conv2d(DEEP_CHANNELS, HEAD_CHANNELS, 1)
        self.out = nn.Linear(HEAD_CHANNELS, CLASSES)
        self.requires_grad_(False)

    @classmethod
    def load(cls, path: Path = FILE) -> Self:
        """Raises FileNotFoundError, or RuntimeError for other tensors than the classifier's."""
        classifier = cls()
        classifier.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        return classifier

    def forward(self, stride16_NCHW: Tensor) -> Tensor:
        """Logits [N, I] of whole pictures, from their stride-16 maps."""
        map_NCHW = stride16_NCHW
        for stage in self.late:
            map_NCHW = stage(map_NCHW)
        logits_NI: Tensor = self.out(relu6(self.head(map_NCHW)).mean((2, 3)))
        return logits_NI


def _share(box: tuple[int, int, int, int], side: int) -> np.ndarray:
    x0, y0, x1, y1 = box

    def covered(low: float, high: float) -> np.ndarray:
        margin = (1 - INSIDE) / 2 * (high - low)
        edges = np.arange(side + 1) * PICTURE_SIZE / side
        begin, end = low + margin, high - margin
        inside: np.ndarray = np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin)
        return inside.clip(0)

    share: np.ndarray = np.outer(covered(y0, y1), covered(x0, x1))
    share /= share.sum()
    return share

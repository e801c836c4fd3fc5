"""ImageNet's own classifier, frozen, as a judge of what the tower makes of a sticker.

Nothing but drawings teaches the tower, yet its first weights came from photographs, and so did the
rows of the classifier that was trained with them. A tower whose drawn zebra is read as a zebra by
these rows has moved it to where photographed zebras are.

Shape suffixes: B pictures, G cells a side of the stride-32 map, C channels, S stickers, I
ImageNet's classes, N names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import relu6

from training.scenes.graph import PICTURE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.scenes.graph import Scene

FILE = Path(__file__).parent / "imagenet.safetensors"
"""The classifier, by `scripts/convert_efficientnet.py --classifier`."""
CLASSES = 1000
HEAD_CHANNELS = 1280
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
    """The stickers of some pictures whose names ImageNet has."""

    picture_S: Tensor
    """Which picture a sticker is in."""
    share_SGG: Tensor
    """How much of what is looked at lies in each cell; sums to 1."""
    name_S: Tensor
    """Into `NAMES`."""

    @classmethod
    def of(cls, scenes: Sequence[Scene], side: int) -> Self:
        """On a map of side x side cells."""
        found = [
            (picture, _share(sticker.box, side), NAMES.index(sticker.name))
            for picture, scene in enumerate(scenes)
            for sticker in scene.stickers
            if sticker.name in IMAGENET
        ]
        return cls(
            torch.tensor([picture for picture, _, _ in found], dtype=torch.int64),
            torch.from_numpy(np.array([share for _, share, _ in found], dtype=np.float32)).view(
                -1, side, side
            ),
            torch.tensor([name for _, _, name in found], dtype=torch.int64),
        )

    def to(self, device: torch.device) -> Self:
        return type(self)(
            self.picture_S.to(device), self.share_SGG.to(device), self.name_S.to(device)
        )


class Classifier(nn.Module):
    """What follows EfficientNet-Lite0's trunk: a product per cell, a mean over cells, a product."""

    says_NI: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(320, HEAD_CHANNELS, 1)
        self.out = nn.Linear(HEAD_CHANNELS, CLASSES)
        says_NI = torch.zeros(len(NAMES), CLASSES, dtype=torch.bool)
        for number, classes in enumerate(IMAGENET.values()):
            says_NI[number, list(classes)] = True
        self.register_buffer("says_NI", says_NI, persistent=False)
        self.requires_grad_(False)

    @classmethod
    def load(cls, path: Path = FILE) -> Self:
        """Raises FileNotFoundError, or RuntimeError for other tensors than the classifier's."""
        classifier = cls()
        classifier.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        return classifier

    def forward(self, deep_BCGG: Tensor, plates: Plates) -> Tensor:
        """Logits [S, I] of the stickers, from the pictures' stride-32 maps."""
        cells_BCGG = relu6(self.head(deep_BCGG))
        share_SGG = plates.share_SGG
        mean_SC = torch.einsum(
            "scgh,sgh->sc", cells_BCGG[plates.picture_S].to(share_SGG.dtype), share_SGG
        )
        logits_SI: Tensor = self.out(mean_SC)
        return logits_SI

    def nats(self, logits_SI: Tensor, name_S: Tensor) -> Tensor:
        """[S]: minus the log of the share that the classes of the right names have."""
        log_SI = logits_SI.log_softmax(-1).masked_fill(~self.says_NI[name_S], -torch.inf)
        return -log_SI.logsumexp(-1)

    def read(self, logits_SI: Tensor) -> Tensor:
        """[S]: the name whose best class is best."""
        best_SN = torch.stack([logits_SI[:, classes].amax(-1) for classes in self.says_NI], dim=1)
        return best_SN.argmax(-1)


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

"""A captioner of the same weights whose tower looks at a larger picture and tells classes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from rediff_model.model import CaptionModel
from rediff_model.vision.efficientnet import FEATURE_CHANNELS
from training.scenes.imagenet import IMAGENET, Classifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rediff_model.config import ModelConfig, VisionConfig
    from rediff_model.vision.efficientnet import CellClassifier, EfficientNetTower

NOTHING_BIAS = 3.0
"""Of the row for nothing, to begin with: of most cells that is the answer."""


def class_rows(names: Sequence[str]) -> tuple[int, ...]:
    """How many rows speak for each name: ImageNet's classes of it, or one that is to be learnt."""
    return tuple(len(IMAGENET.get(name, (None,))) for name in names)


def closer(config: VisionConfig, image_size: int, names: Sequence[str]) -> VisionConfig:
    """The tower's configuration with a larger picture, as many cells, and classes."""
    rows = class_rows(names)
    return replace(
        config,
        image_size=image_size,
        patch_size=image_size // config.patches_per_side,
        hidden_size=FEATURE_CHANNELS + len(rows),
        class_rows=rows,
    )


def widened(old: CaptionModel, config: ModelConfig, names: Sequence[str]) -> CaptionModel:
    """A model of `config` with the weights of `old`, and ImageNet's late stages and rows.

    The projector does not look at the classes yet.
    """
    model = CaptionModel(config)
    values = old.state_dict()
    first = "model.mm_projector.0.weight"
    fresh = torch.zeros_like(model.state_dict()[first])
    fresh[:, : values[first].shape[1]] = values[first]
    model.load_state_dict(values | {first: fresh}, strict=False)
    tower, imagenet = cast("EfficientNetTower", model.tower), Classifier.load()
    tower.late_stages().load_state_dict(imagenet.late.state_dict())
    classifier = cast("CellClassifier", tower.classifier)
    classifier.head.load_state_dict(imagenet.head.state_dict())
    with torch.no_grad():
        classifier.rows.weight.zero_()
        classifier.rows.bias.zero_()
        classifier.rows.bias[-1] = NOTHING_BIAS
        known, rows = known_rows(names)
        classifier.rows.weight[known] = imagenet.out.weight[rows]
        classifier.rows.bias[known] = imagenet.out.bias[rows]
    return model


def known_rows(names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The classifier's rows that are ImageNet's, and which of ImageNet's classes they are."""
    places: list[int] = []
    classes: list[int] = []
    at = 0
    for name, count in zip(names, class_rows(names), strict=True):
        if name in IMAGENET:
            places += range(at, at + count)
            classes += IMAGENET[name]
        at += count
    return torch.tensor(places), torch.tensor(classes)

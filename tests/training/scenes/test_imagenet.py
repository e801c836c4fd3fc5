"""ImageNet's classifier: what it is made of, where it looks and which names it knows."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import batch_norm, conv2d, relu6

from rediff_model.model import Captioner
from rediff_model.vision.efficientnet import HEAD_CHANNELS, EfficientNetTower
from scripts.convert_efficientnet import BATCH_NORM_EPS, classifier_of, tower_config
from training.scenes.imagenet import CLASSES, IMAGENET, NAMES, Classifier, Plates
from training.stickers.atlas import Atlas
from training.stickers.graph import PICTURE_SIZE, Scene, Sticker


def scene(vendor: str, *stickers: tuple[str, tuple[int, int, int, int]]) -> Scene:
    placed = tuple(Sticker(name, vendor, "red", "round", "small", box) for name, box in stickers)
    return Scene(0, "white", "plain", placed)


def test_every_name_is_in_the_atlas_and_no_class_says_two() -> None:
    assert set(NAMES) <= set(Atlas.load().names)
    assert all(0 <= number < CLASSES for classes in IMAGENET.values() for number in classes)
    for one, other in combinations(IMAGENET.values(), 2):
        assert not set(one) & set(other)


def test_the_folded_head_is_the_published_one() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) + 0.5

    norm = {f"_bn1.{name}": drawn(HEAD_CHANNELS) for name in ("weight", "bias")}
    norm |= {f"_bn1.running_{name}": drawn(HEAD_CHANNELS) for name in ("mean", "var")}
    published = {
        "_conv_head.weight": drawn(HEAD_CHANNELS, 320, 1, 1) - 1,
        "_fc.weight": drawn(CLASSES, HEAD_CHANNELS) - 1,
        "_fc.bias": drawn(CLASSES),
        "_bn1.num_batches_tracked": torch.tensor(1),
        **norm,
    }
    tower = EfficientNetTower(tower_config(64)).double()
    classifier = Classifier().double()
    classifier.load_state_dict(classifier_of(published, tower))
    middle = drawn(1, 112, 4, 4).double()
    deep = tower.deepened(middle)["stride32"]
    cells = conv2d(deep, published["_conv_head.weight"].double())
    mean, var, weight, bias = (
        norm[f"_bn1.{name}"].double() for name in ("running_mean", "running_var", "weight", "bias")
    )
    cells = relu6(batch_norm(cells, mean, var, weight, bias, eps=BATCH_NORM_EPS))
    wanted = published["_fc.weight"].double() @ cells.mean((0, 2, 3)) + published["_fc.bias"]
    torch.testing.assert_close(classifier(middle)[0], wanted)


def test_plates_say_what_lies_where() -> None:
    atlas = Atlas.load()
    scenes = [
        scene(atlas.vendors[0], ("giraffe", (0, 0, 40, 40)), ("zebra", (100, 50, 160, 110))),
        scene(atlas.vendors[1], ("rose", (140, 140, PICTURE_SIZE, PICTURE_SIZE))),
    ]
    plates = Plates.of(scenes, 12, atlas)
    assert plates.picture_S.tolist() == [0, 0, 1]
    assert [atlas.names[number] for number in plates.name_S] == ["giraffe", "zebra", "rose"]
    drawings = [(vendor, name) for vendor in atlas.vendors for name in atlas.names]
    assert [drawings[number] for number in plates.drawing_S] == [
        (atlas.vendors[0], "giraffe"),
        (atlas.vendors[0], "zebra"),
        (atlas.vendors[1], "rose"),
    ]
    torch.testing.assert_close(plates.share_SGG.sum((1, 2)), torch.ones(3))
    rows, columns = (plates.share_SGG[1].sum(axis) for axis in (1, 0))
    middle = torch.arange(12) + 0.5
    assert (rows * middle).sum() * PICTURE_SIZE / 12 == pytest.approx(80, abs=1)
    assert (columns * middle).sum() * PICTURE_SIZE / 12 == pytest.approx(130, abs=1)


def test_the_shipped_classifier_knows_what_it_was_made_for() -> None:
    """Large drawn pictures, through the trunk that ships and the classifier."""
    tower: Any = Captioner.load("rediff_model/checkpoints/embedded-384").model.tower
    atlas, classifier = Atlas.load(), Classifier.load()
    right = 0
    names = ("zebra", "banana", "strawberry", "umbrella", "soccer ball", "teapot")
    for name in names:
        picture = atlas.picture(atlas.vendors[0], name).resize((168, 168), Image.Resampling.BICUBIC)
        canvas = Image.new("RGB", (192, 192), "white")
        canvas.paste(picture, (12, 12), picture)
        pixels = torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1)[None]
        logits_NI = classifier(tower.maps(tower.normalise(pixels))["stride16"])
        right += int(logits_NI.argmax()) in IMAGENET[name]
    assert right >= 3

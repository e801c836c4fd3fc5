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
from scripts.convert_efficientnet import BATCH_NORM_EPS, classifier_of
from training.scenes.atlas import Atlas
from training.scenes.graph import PICTURE_SIZE, Scene, Sticker
from training.scenes.imagenet import CLASSES, HEAD_CHANNELS, IMAGENET, NAMES, Classifier, Plates


def scene(*stickers: tuple[str, tuple[int, int, int, int]]) -> Scene:
    placed = tuple(Sticker(name, "v", "red", "round", "small", box) for name, box in stickers)
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
    classifier = Classifier().double()
    classifier.load_state_dict(classifier_of(published))
    deep = drawn(1, 320, 4, 4).double()
    cells = conv2d(deep, published["_conv_head.weight"].double())
    mean, var, weight, bias = (
        norm[f"_bn1.{name}"].double() for name in ("running_mean", "running_var", "weight", "bias")
    )
    cells = relu6(batch_norm(cells, mean, var, weight, bias, eps=BATCH_NORM_EPS))
    # A plate over everything, of which the middle is looked at.
    plates = Plates.of([scene(("zebra", (0, 0, PICTURE_SIZE, PICTURE_SIZE)))], 4)
    share = torch.tensor([0.6, 1.0, 1.0, 0.6]) / 3.2
    torch.testing.assert_close(plates.share_SGG[0], torch.outer(share, share))
    mean_C = torch.einsum("cgh,g,h->c", cells[0], share.double(), share.double())
    wanted = published["_fc.weight"].double() @ mean_C + published["_fc.bias"].double()
    wide = Plates(plates.picture_S, share.double().outer(share.double())[None], plates.name_S)
    torch.testing.assert_close(classifier(deep, wide)[0], wanted)


def test_plates_are_of_names_that_imagenet_has() -> None:
    scenes = [
        scene(("giraffe", (0, 0, 40, 40)), ("zebra", (100, 50, 160, 110))),
        scene(("rose", (0, 0, 40, 40))),
        scene(("tiger", (180, 180, 224, 224))),
    ]
    plates = Plates.of(scenes, 12)
    assert plates.picture_S.tolist() == [0, 2]
    assert [NAMES[number] for number in plates.name_S] == ["zebra", "tiger"]
    torch.testing.assert_close(plates.share_SGG.sum((1, 2)), torch.ones(2))
    rows, columns = (plates.share_SGG[0].sum(axis) for axis in (1, 0))
    middle = torch.arange(12) + 0.5
    assert (rows * middle).sum() * PICTURE_SIZE / 12 == pytest.approx(80, abs=1)
    assert (columns * middle).sum() * PICTURE_SIZE / 12 == pytest.approx(130, abs=1)
    empty = Plates.of([scenes[1]], 12)
    assert (empty.share_SGG.shape, len(empty.name_S)) == ((0, 12, 12), 0)


def test_a_name_is_right_by_any_of_its_classes() -> None:
    classifier = Classifier()
    cow, zebra = NAMES.index("cow"), NAMES.index("zebra")
    logits = torch.zeros(2, CLASSES)
    logits[0, 346] = 20.0
    logits[1, 340] = 20.0
    assert classifier.read(logits).tolist() == [cow, zebra]
    right = classifier.nats(logits, torch.tensor([cow, zebra]))
    wrong = classifier.nats(logits, torch.tensor([zebra, cow]))
    assert right.max() < 1e-4
    assert wrong.min() > 15
    even = classifier.nats(torch.zeros(1, CLASSES), torch.tensor([cow]))
    torch.testing.assert_close(even, torch.tensor([np.log(CLASSES / 3)], dtype=torch.float32))


def test_the_shipped_classifier_knows_what_it_was_made_for() -> None:
    """A large drawn picture on white, through the trunk that ships and the classifier."""
    tower: Any = Captioner.load("rediff_model/checkpoints/embedded").model.tower
    atlas, classifier = Atlas.load(), Classifier.load()
    right = 0
    names = ("zebra", "banana", "strawberry", "umbrella", "soccer ball", "teapot")
    for name in names:
        canvas = Image.new("RGB", (384, 384), "white")
        picture = atlas.picture(atlas.vendors[0], name).resize((96, 96), Image.Resampling.BICUBIC)
        canvas.paste(picture, (144, 144), picture)
        pixels = torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1)[None]
        maps = tower.maps(tower.normalise(pixels))
        box = (84, 84, 140, 140)
        logits = classifier(maps["stride32"], Plates.of([scene((name, box))], 12))
        right += NAMES[int(classifier.read(logits))] == name
    assert right >= 2

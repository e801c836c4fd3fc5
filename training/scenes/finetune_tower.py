"""Lets a captioner that is trained look closer, and name what it sees with a classifier's words.

The tower gets a larger picture and a classifier of its cells. Its late stages begin as ImageNet's
and learn the names of varied drawings on plates, and the plates' colours, shapes and sizes, while
they must go on saying of every sticker what ImageNet says of its picture alone and enlarged: so
they keep what they know of photographs.
The projector then learns to hand that on (`training.scenes.distil_projector`).

Shape suffixes: B pictures, T cells, C channels, G cells a side of the stride-32
map, S stickers, I ImageNet's classes, K classes or kinds of labels, V drawings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from rediff_model.model import Captioner
from rediff_model.vision.efficientnet import DEEP_STRIDE, FEATURE_CHANNELS, CellClassifier
from training.loop.state import processes, take_over
from training.loop.train import LoopSettings, train
from training.scenes.add_classifier import known_rows
from training.scenes.augment import varied
from training.scenes.cell_labels import LOOKS, DenseBatch, DenseObjective, dense_labels
from training.scenes.distil_projector import shuffled, teach_projector
from training.scenes.features import as_map, load_or_build, load_or_build_maps
from training.scenes.imagenet import Classifier, Plates

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rediff_model.vision.efficientnet import EfficientNetTower
    from training.scenes.features import SceneFeatures
    from training.scenes.new_model import SceneRun
    from training.stickers.atlas import Atlas

PICTURES = 16
"""Pictures a step of the tower."""
LATE_RATE = 3e-4
ROW_RATE = 3e-3
PLATE_WEIGHT = 0.3
"""What the names under whole plates count beside those of cells, and beside ImageNet's words."""
LOOKS_WEIGHT = 0.3
"""What colours and the like of cells count: the projector can tell what the tower leaves in."""
LOOKS_SIZE = 192
"""Width of the throwaway layers that tell them."""
LOOKS_RATE = 1e-3
ENLARGED = 192
"""Side of a picture of its own, margin included, as ImageNet is asked about it."""
GROUND = "white"
MARGIN = 4
"""Pixels of an atlas's picture, which is 64 wide."""
GUISES = 8
"""Ways in which the drawings are varied, and in which names get other names' pictures."""
KEPT = 0.9
"""What the late stages keep of what they learnt; the rest is ImageNet's again. A mean of weights
before and after knows more of what was not taught (Wortsman et al. 2022, arXiv 2109.01903)."""


@torch.inference_mode()
def words(atlas: Atlas, tower: EfficientNetTower, imagenet: Classifier) -> Tensor:
    """What ImageNet says of every picture by itself, logits [vendors x names, I]: the mean of both
    ways round."""
    said = []
    device = imagenet.out.weight.device
    for vendor in atlas.vendors:
        for name in atlas.names:
            picture = atlas.picture(vendor, name)
            side = picture.width + 2 * MARGIN
            view = Image.new("RGB", (side, side), GROUND)
            view.paste(picture, (MARGIN, MARGIN), picture)
            large = np.asarray(view.resize((ENLARGED, ENLARGED), Image.Resampling.BICUBIC))
            pixels = torch.from_numpy(np.stack([large, large[:, ::-1]])).permute(0, 3, 1, 2)
            map_NCHW = tower.maps(tower.normalise(pixels.to(device)))["stride16"]
            said.append(imagenet(map_NCHW).float().mean(0))
    return torch.stack(said)


@dataclass(frozen=True, slots=True)
class SightBatch:
    """Cells of stride-16 maps, and what lies in the pictures."""

    maps_BTC: Tensor
    names_BGG: Tensor
    """Labels of the cells of the stride-32 map; the last class is nothing."""
    labels_BTK: Tensor
    """Of the feature cells, all kinds."""
    plates: Plates
    words_SI: Tensor

    def weight(self) -> float:
        return float(len(self.maps_BTC))

    def to(self, device: torch.device) -> Self:
        return type(self)(
            self.maps_BTC.to(device),
            self.names_BGG.to(device),
            self.labels_BTK.to(device),
            self.plates.to(device),
            self.words_SI.to(device),
        )


class SightObjective(nn.Module):
    """Names of cells and of plates by the tower's classifier, ImageNet's words of plates, and what
    else there is to see in cells."""

    def __init__(self, tower: EfficientNetTower, out: nn.Linear) -> None:
        super().__init__()
        self.tower = tower
        self.out = out
        reader = nn.Sequential(nn.Linear(FEATURE_CHANNELS, LOOKS_SIZE), nn.GELU())
        self.looks = DenseObjective(reader, LOOKS_SIZE, len(tower.config.class_rows), LOOKS)

    def forward(self, batch: SightBatch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The summed loss, and the right and all cells and plates, and the words' divergence."""
        classifier = cast("CellClassifier", self.tower.classifier)
        maps = self.tower.deepened(as_map(batch.maps_BTC))
        seen_BCGG = classifier.seen(maps["stride32"])
        logits_TK = classifier.read(classifier.smooth(seen_BCGG)).flatten(0, 2)
        names_T = batch.names_BGG.flatten()
        cells = cross_entropy(logits_TK, names_T)
        plates = batch.plates
        mean_SC = torch.einsum(
            "scgh,sgh->sc", seen_BCGG[plates.picture_S].float(), plates.share_SGG
        )
        logits_SK = classifier.read(mean_SC)
        named = cross_entropy(logits_SK, plates.name_S)
        said = kl_div(
            self.out(mean_SC).float().log_softmax(-1),
            batch.words_SI.log_softmax(-1),
            log_target=True,
            reduction="batchmean",
        )
        dense = DenseBatch(self.tower.placed(maps), batch.labels_BTK)
        looks, look_parts = self.looks(dense)
        looks = looks / dense.weight()
        weight = batch.weight()
        something_T = names_T < logits_TK.shape[1] - 1
        right_T = logits_TK.argmax(-1) == names_T
        right_S = logits_SK.argmax(-1) == plates.name_S
        parts = {
            "right_cell": (right_T[something_T].sum(), something_T.sum()),
            "right_nothing": (right_T[~something_T].sum(), (~something_T).sum()),
            "right_plate": (right_S.sum(), right_S.new_ones(len(right_S)).sum()),
            "words": (said.detach() * weight, torch.tensor(weight)),
        }
        loss = cells + PLATE_WEIGHT * named + said + LOOKS_WEIGHT * looks
        return loss * weight, parts | look_parts


def look_closer(scene_run: SceneRun, cache: Path) -> SceneFeatures:
    """Teach the tower and the projector of a model that `add_classifier` made.

    Resumes what the run's folder holds; returns the training scenes' stride-16 maps.
    """
    config, model, atlas = scene_run.config, scene_run.model, scene_run.atlas
    assert config.start_from is not None
    old = Captioner.load(config.start_from, device=model.device, dtype=torch.float32).model
    first, count = config.data.first_seed, config.data.scenes
    tower = cast("EfficientNetTower", model.tower)
    guises = [varied(atlas, number) for number in range(GUISES)]
    with processes().main_process_first():
        maps = load_or_build_maps("train", first, count, atlas, model, cache)
        seen = kept_maps(scene_run, guises, count, cache)
    # As ImageNet's stages say it, for the layers that tell colours; then as the taught ones do.
    measure(tower, maps)
    teach_tower(scene_run, guises, [part for _, part in seen])
    measure(tower, maps)
    others = [shuffled(atlas, number) for number in range(GUISES)]
    found: list[tuple[int, np.ndarray]] = []
    with processes().main_process_first():
        features = load_or_build("train", first, count, atlas, model, cache, maps)
        wanted = load_or_build("train", first, count, atlas, old, cache)
        for other, (start, part) in zip(
            others, kept_maps(scene_run, others, count // 4, cache), strict=True
        ):
            kept = load_or_build("train", start, len(part.scenes), other, model, cache, part)
            found.append((start - first, kept.features_NPF))
    teach_projector(scene_run, old, features, wanted, found)
    model.requires_grad_(True)
    tower.requires_grad_(False)
    return maps


def kept_maps(
    scene_run: SceneRun, atlases: Sequence[Atlas], count: int, cache: Path
) -> list[tuple[int, SceneFeatures]]:
    """Maps of the first `count` training scenes, an equal part with every atlas, and the number of
    each part's first scene."""
    part = max(1, count // len(atlases))
    starts = [scene_run.config.data.first_seed + part * number for number in range(len(atlases))]
    return [
        (start, load_or_build_maps("train", start, part, atlas, scene_run.model, cache))
        for start, atlas in zip(starts, atlases, strict=True)
    ]


def teach_tower(
    scene_run: SceneRun, guises: Sequence[Atlas], maps: Sequence[SceneFeatures]
) -> None:
    """Train the late stages' products and the rows of the names that ImageNet lacks, with layers
    that tell colours and the like and are thrown away."""
    config, atlas, model = scene_run.config, scene_run.atlas, scene_run.model
    tower, imagenet = cast("EfficientNetTower", model.tower), Classifier.load().to(model.device)
    words_GVI = torch.stack([words(guise, tower, imagenet) for guise in guises])
    objective = SightObjective(tower, imagenet.out).to(model.device)
    objective.requires_grad_(False)
    late = tower.late_products()
    rows = cast("CellClassifier", tower.classifier).rows
    known, _ = known_rows(atlas.names)
    looks = list(objective.looks.parameters())
    for parameter in (*late, *rows.parameters(), *looks):
        parameter.requires_grad_(True)
    for parameter in rows.parameters():
        parameter.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: gradient.index_fill(0, known.to(gradient.device), 0)
        )
    optimizer = torch.optim.AdamW(
        [
            {"params": late, "lr": LATE_RATE, "weight_decay": 0.01},
            {"params": list(rows.parameters()), "lr": ROW_RATE, "weight_decay": 0.0},
            {"params": looks, "lr": LOOKS_RATE, "weight_decay": 0.01},
        ]
    )
    assert config.sight is not None
    settings = LoopSettings(
        steps=config.sight.steps,
        warmup=20,
        precision=config.precision,
        clip=5.0,
        parts=config.parts,
        save_every=100,
    )
    average = train(
        objective,
        [optimizer],
        sight_batches(scene_run, maps, words_GVI),
        settings,
        scene_run.folder / "sight",
    )
    take_over(objective, average)
    published = imagenet.late.state_dict()
    with torch.no_grad():
        for name, value in tower.late_stages().named_parameters():
            value.lerp_(published[name], 1 - KEPT)
        for value in tower.parameters():
            # A checkpoint holds the tower in half precision: features shall be of those weights.
            value.copy_(value.half())


def sight_batches(
    scene_run: SceneRun, maps: Sequence[SceneFeatures], words_GVI: Tensor
) -> Callable[[int, int], SightBatch]:
    """The pictures of a step, by its number; `maps` are of the guises of the atlas."""
    atlas, seed = scene_run.atlas, scene_run.config.seed
    vision = scene_run.model_config.vision
    side, cells = vision.image_size // DEEP_STRIDE, vision.patches_per_side
    places = [(guise, row) for guise, part in enumerate(maps) for row in range(len(part.scenes))]

    def batch(step: int, part: int) -> SightBatch:
        rng = np.random.default_rng((seed, 8, step, part))
        chosen = [places[number] for number in rng.integers(0, len(places), PICTURES)]
        scenes = [maps[guise].scenes[row] for guise, row in chosen]
        names = torch.from_numpy(dense_labels(scenes, atlas.names, side)[:, :, 0])
        labels = torch.from_numpy(dense_labels(scenes, atlas.names, cells))
        plates = Plates.of(scenes, side, atlas)
        guise_S = torch.tensor([guise for guise, _ in chosen])[plates.picture_S]
        return SightBatch(
            torch.cat([maps[guise].rows(np.array([row])) for guise, row in chosen]),
            names.view(-1, side, side),
            labels,
            plates,
            words_GVI[guise_S, plates.drawing_S],
        )

    return batch


@torch.inference_mode()
def measure(tower: EfficientNetTower, maps: SceneFeatures, scenes: int = 1024) -> None:
    """Set the statistics that standardise the features, by the first scenes; in half precision, as
    a checkpoint holds them."""
    device, count = tower.feature_mean_F.device, min(scenes, len(maps.scenes))
    rows = (
        maps.rows(np.arange(start, min(start + PICTURES, count))).to(device)
        for start in range(0, count, PICTURES)
    )
    tower.standardise(tower.raw(tower.deepened(as_map(part))).flatten(0, 1) for part in rows)
    for statistic in (tower.feature_mean_F, tower.feature_scale_F):
        statistic.copy_(statistic.half())

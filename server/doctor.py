"""What `rediff doctor` looks at: versions, device, kernels, memory, and whether a caption comes."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from rediff_model.machine import available_memory, total_memory, usable_processors
from server import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.engine.config import EngineConfig

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "fastapi", "uvicorn", "pillow")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    what: str
    value: str
    ok: bool = True


def foreign_kernels() -> str | None:
    """Why the PyPI package `kernels` cannot stay beside ours; None if it is not installed.

    transformers probes for a package of that name and would take one for the other.
    """
    try:
        version = metadata.version("kernels")
    except metadata.PackageNotFoundError:
        return None
    return (
        f"the PyPI package kernels {version} is installed and hides the one of rediff-serve: "
        "pip uninstall kernels, or use an environment of its own"
    )


def examine(config: EngineConfig) -> Iterator[Finding]:
    """The findings, as they are made; whatever fails is a finding too."""
    yield Finding("rediff-serve", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        try:
            yield Finding(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, "not installed", ok=False)
    clash = foreign_kernels()
    yield Finding("package kernels", clash or "ours alone", ok=clash is None)
    yield Finding("processors", f"{usable_processors()} usable of {os.cpu_count()}")
    for what, found in (
        ("device", _device),
        ("kernels in use", _backend),
        ("free memory", _memory),
        ("checkpoint", _checkpoint),
    ):
        yield _found(what, found, config)


def _found(what: str, find: Callable[[EngineConfig], str], config: EngineConfig) -> Finding:
    try:
        return Finding(what, find(config))
    # Its work is to report what is broken, whatever that is.
    except Exception as error:
        return Finding(what, " ".join(str(error).split()) or type(error).__name__, ok=False)


def _device(config: EngineConfig) -> str:
    import torch

    from server.engine.model_runner import choose_device

    device = choose_device(config.device)
    if device.type != "cuda":
        return f"{device}, {torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(device)
    return f"{device}, {properties.name}, compute capability {properties.major}.{properties.minor}"


def _backend(config: EngineConfig) -> str:
    from kernels.ops import backend

    return backend()


def _memory(config: EngineConfig) -> str:
    import torch

    from server.engine.model_runner import choose_device

    device = choose_device(config.device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB on {device}"
    available, installed = (
        "unknown" if size is None else f"{size / 2**30:.1f}"
        for size in (available_memory(), total_memory())
    )
    return f"{available} of {installed} GiB"


def _checkpoint(config: EngineConfig) -> str:
    """Loads it and takes one step on a grey picture."""
    from PIL import Image

    from rediff_model.sampling.params import SamplerSettings
    from rediff_model.sampling.sampler import generate
    from server.engine.model_runner import load_captioner

    captioner = load_captioner(config)
    features = captioner.image_features([Image.new("RGB", (64, 64), "grey")])
    settings = SamplerSettings(canvas_length=captioner.config.canvas_length, steps=1)
    generate(captioner.model, [captioner.prompt(features[0])], [settings], captioner.token_ids)
    weights = sum(weight.numel() for weight in captioner.model.parameters())
    attention = captioner.config.language.prefix_attention
    return f"{config.model}: {weights / 1e6:.1f} M weights, {attention} attention, captions"

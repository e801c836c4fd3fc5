"""The batched sampler against the reference run one by one: captions a second and equal captions.

    python -m benchmarks.sampler --model rediff_model/checkpoints/embedded --n 32
    python -m benchmarks.sampler --shape 8b --device cuda --dtype bfloat16 --n 16 --reference 2

With `--model`, prompts are those of test scenes through the checkpoint's own tower, encoded before
the clocks start. With `--shape`, weights and prompts are random. Both sides run in this process,
after a warm-up, with the same weights and settings; quote the ratio, not the times.

Shape suffixes: P prompt rows, D hidden size.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rediff_model.config import LanguageConfig, TokenIds
from rediff_model.language import LanguageModel
from rediff_model.model import Captioner
from rediff_model.sampling import reference
from rediff_model.sampling.params import SamplerSettings
from rediff_model.sampling.sampler import generate
from training.stickers.atlas import Atlas
from training.stickers.evaluate import scene_prompts
from training.stickers.sample import sample_scene

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rediff_model.config import PrefixAttention

SHAPES = {
    "tiny": (LanguageConfig(512, 64, 160, 2, 4, 4), 60),
    "8b": (LanguageConfig(), 3000),
}
"""Language model and prompt rows."""


@dataclass(frozen=True, slots=True)
class Work:
    """What both sides are given."""

    model: LanguageModel
    prompts: list[Tensor]
    ids: TokenIds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="a checkpoint folder")
    source.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--prefix-attention", choices=("full", "prefix"), default="prefix")
    parser.add_argument("--n", type=int, default=16, help="captions of the batched sampler")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--reference", type=int, default=4, help="captions of the reference")
    parser.add_argument("--tokens-per-step", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    dtype = getattr(torch, arguments.dtype)
    if arguments.model is not None:
        work = checkpoint_work(arguments.model, arguments.n, arguments.device, dtype)
    else:
        work = random_work(
            arguments.shape, arguments.prefix_attention, arguments.n, arguments.device, dtype
        )
    result = compare(work, arguments.tokens_per_step, arguments.batch, arguments.reference)
    result |= {
        "command": f"python -m benchmarks.sampler {' '.join(map(str, _given(arguments)))}",
        "hardware": hardware(arguments.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    text = json.dumps(result, indent=2)
    print(text)  # noqa: T201
    if arguments.json is not None:
        arguments.json.write_text(text + "\n", encoding="utf-8")


def checkpoint_work(folder: Path, count: int, device: str, dtype: torch.dtype) -> Work:
    captioner = Captioner.load(folder, device=device, dtype=dtype)
    atlas = Atlas.load()
    scenes = [sample_scene(seed, atlas, split="test") for seed in range(count)]
    prompts = scene_prompts(captioner, scenes, atlas)
    return Work(captioner.model, prompts, captioner.token_ids)


def random_work(
    shape: str, prefix_attention: PrefixAttention, count: int, device: str, dtype: torch.dtype
) -> Work:
    config, rows = SHAPES[shape]
    values = {name: getattr(config, name) for name in LanguageConfig.__dataclass_fields__}
    config = LanguageConfig(**{**values, "prefix_attention": prefix_attention})
    torch.manual_seed(0)
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        model = LanguageModel(config).eval()
        prompts = [torch.randn(rows, config.hidden_size) for _ in range(count)]
        torch.set_default_dtype(default)
    last = config.vocab_size - 1
    return Work(model, prompts, TokenIds(last, (last - 1, last - 2), last - 3))


def compare(
    work: Work, tokens_per_step: int, batch: int, reference_count: int
) -> dict[str, object]:
    """Captions a second of both sides, their ratio, and the share of equal captions."""
    settings = SamplerSettings(tokens_per_step=tokens_per_step)
    generate(work.model, work.prompts[:2], [settings] * 2, work.ids)
    reference.generate(work.model, work.prompts[0], settings, work.ids)

    started = time.perf_counter()
    batched = []
    for start in range(0, len(work.prompts), batch):
        part = work.prompts[start : start + batch]
        batched += generate(work.model, part, [settings] * len(part), work.ids)
    batched_rate = len(batched) / (time.perf_counter() - started)

    started = time.perf_counter()
    slow = [
        reference.generate(work.model, prompt, settings, work.ids)
        for prompt in work.prompts[:reference_count]
    ]
    slow_rate = len(slow) / (time.perf_counter() - started)
    equal = sum(one.ids == two.ids for one, two in zip(slow, batched, strict=False))
    return {
        "captions_per_second": batched_rate,
        "reference_captions_per_second": slow_rate,
        "ratio_to_reference": batched_rate / slow_rate,
        "identical_fraction": equal / len(slow),
        "steps": sum(made.steps for made in batched) / len(batched),
        "batch": batch,
    }


def hardware(device: str) -> str:
    """The GPU's name, or the processor's architecture and cores in use."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _given(arguments: argparse.Namespace) -> list[object]:
    return [
        item
        for name, value in vars(arguments).items()
        if value is not None
        for item in (f"--{name.replace('_', '-')}", value)
    ]


if __name__ == "__main__":
    main()

"""Forward passes and scores of ways of decoding, to choose the thresholds of a checkpoint.

    python -m benchmarks.adaptive --n 48 --seed 6
    python -m benchmarks.adaptive --n 48 --seed 5 --tokens-per-step 8 12 --reveal-threshold 0.6 0.7

The first line is the preset `rediff` with what the checkpoint prefers, the second without its extra
steps; then come the other presets, or the grid if one is given. Pictures are test scenes through
the checkpoint's own tower, those that `rediff data scenes` writes for the seed: choose on one seed
and quote another.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

from rediff_model.model import Captioner
from rediff_model.sampling.params import PRESETS, SamplerSettings
from training.stickers.atlas import Atlas, default_names
from training.stickers.evaluate import evaluate, scene_prompts
from training.stickers.export import SEED_STRIDE
from training.stickers.sample import sample_scene

WITHOUT = replace(PRESETS["rediff"], extra_refine_steps=0)
SHOWN = ("coverage", "factuality", "fluency")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("rediff_model/checkpoints/embedded"))
    parser.add_argument("--n", type=int, default=48, help="scenes")
    parser.add_argument("--seed", type=int, default=5, help="which scenes")
    parser.add_argument("--tokens-per-step", type=int, nargs="+", default=[])
    parser.add_argument("--reveal-threshold", type=float, nargs="+", default=[])
    parser.add_argument("--edit-threshold", type=float, nargs="+", default=[0.0])
    parser.add_argument("--extra-refine-steps", type=int, nargs="+", default=[0])
    parser.add_argument("--block-length", type=int, nargs="+", help="one block if left out")
    given = parser.parse_args()
    asked: dict[str, SamplerSettings] = {}
    grid = product(
        given.tokens_per_step,
        given.reveal_threshold,
        given.edit_threshold,
        given.extra_refine_steps,
        given.block_length or [None],
    )
    for tokens, reveal, edit, extra, block in grid:
        name = f"{tokens} tokens, reveal {reveal}, edit {edit}, extra {extra}, block {block}"
        asked[name] = SamplerSettings(
            block_length=block,
            tokens_per_step=tokens,
            reveal_threshold=reveal,
            edit_threshold=edit,
            extra_refine_steps=extra,
        )
    first = given.seed * SEED_STRIDE
    baselines = {"rediff": PRESETS["rediff"], "rediff, no extra steps": WITHOUT}
    measure(given.model, range(first, first + given.n), {**baselines, **(asked or PRESETS)})


def measure(folder: Path, numbers: range, ways: dict[str, SamplerSettings]) -> None:
    """Write a line a way of decoding, on the scenes of these numbers, to the standard output."""
    captioner = Captioner.load(folder)
    atlas, names = Atlas.load(), default_names()
    scenes = [sample_scene(number, atlas, split="test") for number in numbers]
    prompts = scene_prompts(captioner, scenes, atlas)
    columns = "".join(f" {metric:>10}" for metric in SHOWN)
    sys.stdout.write(f"{'':55} {'forwards':>8}{columns}\n")
    for name, settings in ways.items():
        sized = replace(settings, canvas_length=captioner.config.canvas_length).preferring(
            captioner.config.preferences
        )
        row = evaluate(captioner, scenes, prompts, names, sized)
        means = "".join(f" {row.metrics[metric]['mean']:>10.3f}" for metric in SHOWN)
        sys.stdout.write(f"{name:55} {row.forwards:>8.1f}{means}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

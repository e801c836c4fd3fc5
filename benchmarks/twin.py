"""The official algorithm, our engine and an autoregressive twin side by side, on one machine.

    python -m benchmarks.twin --twin runs/twin/checkpoint --json benchmarks/results/twin.json
    python -m benchmarks.twin --twin runs/twin/checkpoint --scenes 4 --speed 2 --rounds 1

All sides caption the same test scenes, those of `rediff evaluate --split test --seed 1`, from the
same features of the same tower, computed before the clocks start. The reference runs prompt and
canvas at every step, as the official code does, one caption at a time. The twin runs in
transformers' `generate`, greedy, with its cache, left as it is. Rounds of all sides alternate,
because other work on the machine slows each; figures are medians over rounds.

Shape suffixes: N scenes, P cells of a picture, F feature channels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers

from benchmarks.client import Seconds, Work
from benchmarks.outcomes import percentiles
from benchmarks.sampler import hardware
from benchmarks.sides import our_prompts, sides, tower_features
from rediff_model.model import Captioner
from server.settings import EMBEDDED
from training.stickers.atlas import Atlas, default_names
from training.stickers.export import SEED_STRIDE
from training.stickers.sample import sample_scene
from training.stickers.score import METRICS, score, summarise
from training.twin.model import TRAINING, Twin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.sides import Made, Side

SEED: Final = 1


@dataclass(frozen=True, slots=True)
class Counts:
    """How many prompts of each kind of run."""

    single: int
    """One after the other, of the engine and the twin."""
    speed: int
    """At once, in batches above 1."""
    reference: int
    """Of the reference, one after the other."""


def measure_speed(
    compared: Sequence[Side], counts: Counts, rounds: int
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Made]]]:
    """Figures by side and batch, and each side's captions of the first prompts."""
    means: dict[tuple[str, int], list[Seconds]] = defaultdict(list)
    singles: dict[tuple[str, int], list[float]] = defaultdict(list)
    captions: dict[str, list[Made]] = {}
    for side in compared:
        side.caption([0], side.batches[0])
    for _ in range(rounds):
        for side in compared:
            count = counts.reference if side.same_as else counts.single
            for batch in side.batches:
                began = Seconds.now()
                if batch > 1:
                    side.caption(range(counts.speed), batch)
                    means[side.name, batch].append(began.since().per(counts.speed))
                    continue
                captions[side.name] = []
                for place in range(count):
                    sent = Seconds.now()
                    captions[side.name] += side.caption([place], batch)
                    singles[side.name, batch].append(sent.since().wall)
                means[side.name, batch].append(began.since().per(count))
    figures: dict[str, dict[str, Any]] = defaultdict(dict)
    for (name, batch), seconds in means.items():
        figures[name][str(batch)] = {
            "captions_per_second": 1 / median(one.wall for one in seconds),
            "captions_per_cpu_second": 1 / median(one.cpu for one in seconds),
            "latency_seconds": percentiles(singles[name, batch]),
        }
    return figures, captions


def quality(work: Work, made: Sequence[Made]) -> dict[str, Any]:
    """Metrics of captions of all scenes, each with its interval."""
    names = default_names()
    texts = [work.captioner.decode(one.ids) for one in made]
    scores = [score(scene, text, names) for scene, text in zip(work.scenes, texts, strict=True)]
    return asdict(summarise(scores))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the command writes."""
    torch.set_num_threads(options.threads)
    captioner, atlas, twin = Captioner.load(options.model), Atlas.load(), Twin.load(options.twin)
    numbers = range(SEED * SEED_STRIDE, SEED * SEED_STRIDE + options.scenes)
    scenes = [sample_scene(number, atlas, split="test") for number in numbers]
    features_NPF = tower_features(captioner, scenes, atlas)
    work = Work(captioner, scenes, our_prompts(captioner, features_NPF), 0.0)
    twin_prompts = [twin.prompt(features_PF) for features_PF in features_NPF]
    length = options.canvas or captioner.config.canvas_length

    def generate(places: Sequence[int]) -> list[list[int]]:
        return twin.generate([twin_prompts[place] for place in places], length)

    asked = (options.single, options.speed, options.reference)
    counts = Counts(*(min(options.scenes, count) for count in asked))
    rows = []
    with ExitStack() as stack:
        compared = list(sides(work, generate, length, options.batches, stack))
        figures, captions = measure_speed(compared, counts, options.rounds)
        for side in compared:
            speed = figures[side.name]
            best = max(side.batches, key=lambda b: speed[str(b)]["captions_per_second"])
            row: dict[str, Any] = {"name": side.name, "best_batch": best, "speed": speed}
            if side.same_as is None:
                made = side.caption(range(options.scenes), best)
                row["quality"] = quality(work, made)
            else:
                made = captions[side.name]
                pairs = zip(made, captions[side.same_as], strict=False)
                row["same_as"] = side.same_as
                row["identical_fraction"] = mean(own.ids == other.ids for own, other in pairs)
            row["forwards"] = mean(one.forwards for one in made)
            rows.append(row | {"gflop": side.flops(row["forwards"]) / 1e9})
    training = json.loads((options.twin / TRAINING).read_text(encoding="utf-8"))
    return {
        "rows": rows,
        "twin_training": training,
        "scenes": options.scenes,
        "rounds": options.rounds,
        "captions_a_round": asdict(counts),
    }


def table(result: dict[str, Any]) -> str:
    """The figures as a table in Markdown."""
    heads = (
        "",
        "forwards",
        "GFLOP",
        *METRICS,
        "captions/s, one by one",
        "p50 s",
        "captions/s at best",
    )
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in result["rows"]:
        scored, equal = row.get("quality"), row.get("identical_fraction", 1.0)
        same = "the same" if equal == 1 else f"{equal:.0%} the same"
        cells = [row["name"], f"{row['forwards']:.1f}", f"{row['gflop']:.1f}"]
        cells += [f"{scored[metric]['mean']:.3f}" if scored else same for metric in METRICS]
        single, best = row["speed"]["1"], row["speed"][str(row["best_batch"])]
        cells += [
            f"{single['captions_per_second']:.2f}",
            f"{single['latency_seconds']['p50']:.3f}",
            f"{best['captions_per_second']:.2f} (batch {row['best_batch']})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; `arguments` as on the command line, None for those of the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="checkpoint folder")
    parser.add_argument("--twin", type=Path, required=True, help="the twin's checkpoint folder")
    parser.add_argument("--scenes", type=int, default=200, help="scenes that quality is of")
    parser.add_argument("--speed", type=int, default=64, help="captions at once in a round")
    parser.add_argument("--single", type=int, default=16, help="captions one by one in a round")
    parser.add_argument("--reference", type=int, default=4, help="the same of the reference")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--canvas", type=int, help="tokens of a caption; the checkpoint's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    before = os.getloadavg()[0]
    result = measure(options) | {
        "hardware": f"{hardware('cpu')}, {os.cpu_count()} processors",
        "load_average_before": before,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    sys.stdout.write(table(result) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The engine against the reference run one by one: throughput, latency, equality, overhead.

    python -m benchmarks.engine --json out.json
    python -m benchmarks.engine --n 8 --rounds 1 --latency 1 --queued 0

Prompts are those of test scenes, each with a picture of its own, encoded before the clocks start.
The reference computes prompt and canvas at every step, as the official code does. Rounds of the
engine and of the reference alternate, because other work on the machine slows both: quote the
ratios, and on a busy machine those of processor time (`cpu_…`), which with one thread is what the
wall clock would say if nothing else ran. Latency is that of single requests to an engine with
nothing else to do.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Literal

import torch

from benchmarks import cost
from benchmarks.client import Client, Seconds, Work, engine_for
from benchmarks.overhead import SamplerClock, longest_step, queued_slowdown
from benchmarks.sampler import hardware
from benchmarks.tracing import Difference, trace_difference
from rediff_model.sampling.params import PRESETS, SamplerSettings
from server.settings import EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rediff_model.sampling.outputs import Generation
    from server.engine.request import StepTrace


@dataclass(slots=True)
class Rounds:
    """What alternating rounds gave: the time a caption took on each side, and the captions."""

    engine: list[Seconds] = field(default_factory=list)
    adaptive: list[Seconds] = field(default_factory=list)
    reference: list[Seconds] = field(default_factory=list)
    captions: list[Generation] = field(default_factory=list)
    adaptive_captions: list[Generation] = field(default_factory=list)
    references: dict[int, Generation] = field(default_factory=dict)
    traces: list[StepTrace] = field(default_factory=list)
    """Of the engine's steps at the settings of the reference."""
    sampler_seconds: float = 0.0


def throughput(
    client: Client, work: Work, plain: SamplerSettings, adaptive: SamplerSettings, rounds: int
) -> Rounds:
    """All prompts through the engine and a part through the reference, in turn."""
    result, everybody = Rounds(), range(len(work.prompts))
    clock = SamplerClock()
    for turn in range(rounds):
        client.traces.clear()
        with clock:
            result.captions, seconds = client.run(plain, everybody)
        result.engine.append(seconds)
        result.traces += client.traces
        own = list(everybody)[turn::rounds]
        began = Seconds.now()
        result.references |= {place: work.reference(place, plain) for place in own}
        result.reference.append(began.since().per(len(own)))
        result.adaptive_captions, seconds = client.run(adaptive, everybody)
        result.adaptive.append(seconds)
    result.sampler_seconds = clock.seconds
    return result


def latency(client: Client, work: Work, settings: SamplerSettings, count: int) -> Rounds:
    """Single requests to the idle engine and to the reference, in turn."""
    result = Rounds()
    for turn in range(count):
        place = turn % len(work.prompts)
        result.engine.append(client.run(settings, [place])[1])
        began = Seconds.now()
        work.reference(place, settings)
        result.reference.append(began.since())
    return result


def ratio(
    ours: Sequence[Seconds], theirs: Sequence[Seconds], clock: Literal["wall", "cpu"]
) -> float:
    """How many times as long one side took as the other: the median over rounds."""
    pairs = zip(ours, theirs, strict=True)
    ratios: list[float] = [getattr(one, clock) / getattr(two, clock) for one, two in pairs]
    return median(ratios)


def differences(work: Work, rounds: Rounds, settings: SamplerSettings) -> list[Difference]:
    """Where captions of both sides part, and how close the decision was."""
    return [
        trace_difference(work.captioner, work.prompts[place], settings, place)
        for place, caption in rounds.references.items()
        if caption.canvas != rounds.captions[place].canvas
    ]


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Everything that the command prints."""
    if options.threads:
        torch.set_num_threads(options.threads)
    work = Work.load(options.model, options.n)
    config = work.captioner.config
    canvas = options.canvas or config.canvas_length
    plain = SamplerSettings(canvas_length=canvas, tokens_per_step=options.tokens_per_step)
    adaptive = replace(PRESETS["adaptive"], canvas_length=canvas)
    work.reference(0, plain)
    with engine_for(work, options.batch, compiled=options.compile) as client:
        rounds = throughput(client, work, plain, adaptive, options.rounds)
        single = latency(client, work, plain, options.latency)
    parted = differences(work, rounds, plain)
    same = [one.ids == rounds.captions[at].ids for at, one in rounds.references.items()]
    busy = sum(trace.seconds for trace in rounds.traces)
    computed = options.n * sum(one.cpu for one in rounds.engine)
    running = mean(len(trace.running) for trace in rounds.traces)
    prompt = mean(len(rows_PD) for rows_PD in work.prompts)
    step = cost.engine_step(config.language, prompt, canvas, running, itemsize=4)
    slow = cost.reference_step(config.language, prompt, canvas, itemsize=4)
    machine = cost.matmul_flops_per_second(torch.float32, round(running * canvas), config.language)
    return {
        "ratio_to_reference": ratio(rounds.reference, rounds.engine, "wall"),
        "identical_fraction": mean(same),
        "adaptive_ratio": ratio(rounds.reference, rounds.adaptive, "wall"),
        "adaptive_coverage_delta": work.coverage(rounds.adaptive_captions)
        - work.coverage(rounds.captions),
        "overhead_fraction": 1 - rounds.sampler_seconds / busy,
        "latency_ratio": ratio(single.engine, single.reference, "wall"),
        "cpu_ratio_to_reference": ratio(rounds.reference, rounds.engine, "cpu"),
        "cpu_adaptive_ratio": ratio(rounds.reference, rounds.adaptive, "cpu"),
        "cpu_latency_ratio": ratio(single.engine, single.reference, "cpu"),
        "seconds_per_caption": [asdict(one) for one in rounds.engine],
        "adaptive_seconds_per_caption": [asdict(one) for one in rounds.adaptive],
        "reference_seconds_per_caption": [asdict(one) for one in rounds.reference],
        "coverage": work.coverage(rounds.captions),
        "steps": mean(caption.steps for caption in rounds.captions),
        "reference_steps": mean(caption.steps for caption in rounds.references.values()),
        "adaptive_steps": mean(caption.steps for caption in rounds.adaptive_captions),
        "differences": [one.to_json() for one in parted],
        "vision_seconds": work.vision_seconds,
        "queued_slowdown": queued_slowdown(work.captioner, work.prompts, plain, options.queued),
        "longest_step_with_prefill_rows": {
            str(rows): longest_step(work.captioner, rows) for rows in options.prefill_rows
        },
        "cost": {
            "running": running,
            "prompt_rows": prompt,
            "canvas_rows": canvas,
            "step_cpu_seconds": computed / len(rounds.traces),
            "step_gflop": step.flops / 1e9,
            "step_mbytes": step.bytes / 1e6,
            "gflop_per_second": step.flops * len(rounds.traces) / computed / 1e9,
            "matmul_gflop_per_second": machine / 1e9,
            "reference_step_gflop": slow.flops / 1e9,
            "flop_ratio": slow.flops * running / step.flops,
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark; `arguments` as on the command line, None for those of the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=EMBEDDED, help="checkpoint folder")
    parser.add_argument("--n", type=int, default=64, help="requests")
    parser.add_argument("--rounds", type=int, default=4, help="turns of engine and reference")
    parser.add_argument("--batch", type=int, default=16, help="requests in a step")
    parser.add_argument("--latency", type=int, default=5, help="single requests of each side")
    parser.add_argument("--queued", type=int, default=10_000, help="requests that only wait")
    parser.add_argument(
        "--prefill-rows",
        type=int,
        nargs="*",
        default=[512, 1024, 4096],
        help="budgets of joining prompts whose longest step is measured",
    )
    parser.add_argument("--canvas", type=int, help="canvas length; the checkpoint's if left out")
    parser.add_argument("--tokens-per-step", type=int, default=4)
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice if left out")
    parser.add_argument("--compile", action="store_true", help="the engine's layers are compiled")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    result = measure(options) | {
        "requests": options.n,
        "batch": options.batch,
        "tokens_per_step": options.tokens_per_step,
        "compiled": options.compile,
        "hardware": hardware("cpu"),
        "torch": torch.__version__,
    }
    text = json.dumps(result, indent=2)
    print(text)  # noqa: T201
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

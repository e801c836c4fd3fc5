"""What a GPU does with the engine's step: captions a second and utilisation by running requests.

    python -m benchmarks.saturation --device cuda --dtype bfloat16 --peak-tflops 989 --json out.json
    python -m benchmarks.saturation --shape tiny --running 1 4 --reference-steps 2

Random weights and prompts of a shape of `benchmarks.sampler`, so no caption ends early: a caption
takes the steps that its tokens a step say. Every way of running is timed as a batch that joins at
once, prefill and steps apart; captions a second count both. The reference, one request, is timed
over a few steps. A way that does not fit into memory is reported as such.

Random weights are sure of nothing, so nothing adapts: `--passes` takes the forward passes that a
caption of the preset `adaptive` took with trained ones, and is measured against the reference at
four tokens a step.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from benchmarks import cost
from benchmarks.sampler import SHAPES, hardware, random_work
from rediff_model.sampling import reference
from rediff_model.sampling.params import SamplerSettings
from rediff_model.sampling.sampler import join, open_state, step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.sampler import Work
    from rediff_model.config import PrefixAttention

MODES: Final[dict[str, tuple[PrefixAttention, int | None]]] = {
    "prefix": ("prefix", 1),
    "full, every step": ("full", 1),
    "full, every 8 steps": ("full", 8),
}
"""Attention of the prompt, and how often it is computed again where it sees the canvas."""
CANVAS: Final = SamplerSettings().canvas_length
STEPS_SETTLING: Final = 3
STEPS_TIMED: Final = 8
"""One round of the longest interval: prompts that join together are refreshed together."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One way of running. Seconds of wall time."""

    mode: str
    cuda_graphs: bool
    running: int
    tokens_per_step: int | None
    """None for a caption of so many `passes` that adapted."""
    passes: int
    join_seconds: float
    step_seconds: float
    captions_per_second: float
    ratio_to_reference: float
    utilisation: float | None
    """Operations a second of the steps, of the device's peak."""
    peak_bytes: int | None


def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    dtype = getattr(torch, options.dtype)
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.saturation {' '.join(argv or sys.argv[1:])}",
        "hardware": hardware(options.device),
        "torch": torch.__version__,
        "shape": options.shape,
        "figures": [],
        "without_memory": [],
    }
    for mode in options.modes:
        attention, interval = MODES[mode]
        work = random_work(options.shape, attention, max(options.running), options.device, dtype)
        slow = reference_seconds(work, options.reference_steps)
        report.setdefault("reference_step_seconds", {})[mode] = slow
        for running, graphs in product(options.running, options.cuda_graphs):
            try:
                times = measure(work, interval, running, cuda_graphs=graphs == "on")
            except torch.OutOfMemoryError:
                report["without_memory"].append([mode, running, graphs])
                continue
            for tokens, passes in [
                *((tokens, CANVAS // tokens) for tokens in options.tokens_per_step),
                *((None, passes) for passes in options.passes),
            ]:
                pace = Pace(tokens, passes)
                figure = figure_of(work, mode, running, pace, times, slow, options.peak_tflops)
                report["figures"].append(asdict(figure))
                _say(figure)
        if options.profile:
            report.setdefault("where", {})[mode] = where(work, interval, max(options.running))
        del work
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Pace:
    """Tokens a step, None for a caption that adapted, and the forward passes of a caption."""

    tokens_per_step: int | None
    passes: int

    @property
    def reference_passes(self) -> int:
        """What the reference takes for the same caption."""
        return CANVAS // 4 if self.tokens_per_step is None else self.passes


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of joining and of a step, and the most memory in use; None on a CPU."""

    join: float
    step: float
    peak_bytes: int | None
    cuda_graphs: bool
    """Whether the steps were replayed."""


def measure(work: Work, interval: int | None, running: int, *, cuda_graphs: bool = False) -> Times:
    """Times requests that start together, after a first round that warms up what a shape needs.

    A step does not depend on how many tokens it reveals. The first three of a batch do not count:
    with `cuda_graphs` one of them is recorded, if it can be.
    """
    settings = SamplerSettings(tokens_per_step=1, stop=())
    device = work.prompts[0].device
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    for steps in (0, STEPS_TIMED):
        state = open_state(
            work.model, work.ids, prompt_refresh_interval=interval, cuda_graphs=cuda_graphs
        )
        began = _now(device)
        state = join(
            work.model, state, range(running), work.prompts[:running], [settings] * running
        )
        joined = _now(device)
        for _ in range(STEPS_SETTLING):
            state, _ = step(work.model, state)
        settled = _now(device)
        for _ in range(steps):
            state, _ = step(work.model, state)
        ended = _now(device)
    assert state.slots is not None
    recording = state.slots.context.recording
    replayed = recording is not None and recording.recorded
    peak = torch.cuda.max_memory_allocated(device) if cuda else None
    return Times(joined - began, (ended - settled) / STEPS_TIMED, peak, replayed)


def figure_of(
    work: Work,
    mode: str,
    running: int,
    pace: Pace,
    times: Times,
    slow: float,
    peak_tflops: float | None,
) -> Figure:
    """`slow` is the seconds of a step of the reference; a refreshed prompt counts in the steps."""
    config, rows = work.model.model.config, work.prompts[0].shape[0]
    rate = running / (times.join + pace.passes * times.step)
    flops = cost.engine_step(config, rows, CANVAS, running, 2).flops
    interval = MODES[mode][1]
    if mode != "prefix":
        again = cost.forward(config, rows, rows + CANVAS, head_rows=0, itemsize=2).flops
        flops += running * again / (interval or pace.passes)
    return Figure(
        mode=mode,
        cuda_graphs=times.cuda_graphs,
        running=running,
        tokens_per_step=pace.tokens_per_step,
        passes=pace.passes,
        join_seconds=times.join,
        step_seconds=times.step,
        captions_per_second=rate,
        ratio_to_reference=rate * pace.reference_passes * slow,
        utilisation=None if peak_tflops is None else flops / times.step / (peak_tflops * 1e12),
        peak_bytes=times.peak_bytes,
    )


def reference_seconds(work: Work, steps: int) -> float:
    """Seconds of a step of the reference."""
    few = SamplerSettings(steps=steps, stop=())
    device = work.prompts[0].device
    for _ in range(2):
        began = _now(device)
        reference.generate(work.model, work.prompts[0], few, work.ids)
        each = (_now(device) - began) / steps
    return each


def where(work: Work, interval: int | None, running: int, lines: int = 15) -> list[dict[str, Any]]:
    """The operations that take most of three steps: name, calls and milliseconds of the device.

    On a CPU with one thread: the profiler sees no other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _where(work, interval, running, lines)
    finally:
        torch.set_num_threads(threads)


def _where(work: Work, interval: int | None, running: int, lines: int) -> list[dict[str, Any]]:
    settings = SamplerSettings(tokens_per_step=4, stop=())
    state = open_state(work.model, work.ids, prompt_refresh_interval=interval)
    state = join(work.model, state, range(running), work.prompts[:running], [settings] * running)
    state, _ = step(work.model, state)
    cuda = work.prompts[0].device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        for _ in range(3):
            state, _ = step(work.model, state)
    column = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = sorted(profile.key_averages(), key=lambda row: -getattr(row, column))[:lines]
    return [
        {"name": row.key, "calls": row.count, "ms": getattr(row, column) / 1000} for row in rows
    ]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _say(figure: Figure) -> None:
    used = "" if figure.utilisation is None else f", {figure.utilisation:.0%} of the peak"
    print(  # noqa: T201
        f"{figure.mode}{', graphs' if figure.cuda_graphs else ''}, {figure.running} running, "
        f"{_pace(figure)}: "
        f"{figure.captions_per_second:.2f} captions/s, {figure.ratio_to_reference:.1f} x the "
        f"reference{used}",
        flush=True,
    )


def _pace(figure: Figure) -> str:
    if figure.tokens_per_step is None:
        return f"{figure.passes} passes that adapted"
    return f"{figure.tokens_per_step} tokens a step"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES), default=list(MODES))
    parser.add_argument("--running", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--tokens-per-step", nargs="+", type=int, default=[4, 8])
    parser.add_argument(
        "--passes", nargs="*", type=int, default=[20], help="of captions that adapted"
    )
    parser.add_argument("--reference-steps", type=int, default=4)
    parser.add_argument("--peak-tflops", type=float, help="of the device, for its utilisation")
    parser.add_argument(
        "--cuda-graphs",
        nargs="+",
        choices=("off", "on"),
        default=["off"],
        help="launch steps anew, or record and replay them on a GPU",
    )
    parser.add_argument("--profile", action="store_true", help="where three steps' time goes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()

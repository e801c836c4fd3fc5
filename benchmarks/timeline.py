"""A picture of a real run of the engine: requests as rows, steps as columns.

    python -m benchmarks.timeline --out docs/images/engine-timeline.png

The same requests run twice on one checkpoint: with its prefix attention, and with its weights
read as full attention whose prompts are computed again every few steps. Text does not matter here.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from rediff_model.language import LanguageModel
from rediff_model.model import Captioner
from rediff_model.sampling.params import SamplerSettings
from rediff_model.sampling.sampler import open_state
from server.engine.loop import Loop
from server.engine.model_runner import SamplerBatch
from server.engine.request import Job, Prepared
from server.engine.scheduler import Limits, Scheduler
from server.metrics import Metrics
from server.settings import EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from rediff_model.config import PrefixAttention
    from server.engine.request import StepTrace

INTERVAL = 6
"""Steps between two computations of a prompt in the second run."""
COLOURS = {"prefill": "#d95f02", "refresh": "#7570b3", "denoise": "#9ecae1"}
ARRIVALS = (0, 0, 0, 0, 0, 0, 3, 5, 5, 8, 11, 12, 12, 15, 18, 19, 22, 22, 22, 22, 22, 22)
"""The step at which each request comes."""
CANCELLED = 5
"""The request that is given up on its way."""


class Opener:
    """Batches of a language model."""

    def __init__(self, captioner: Captioner, attention: PrefixAttention) -> None:
        self._ids = captioner.token_ids
        self._model: LanguageModel = captioner.model
        if attention == "full":
            config = replace(captioner.config.language, prefix_attention=attention)
            weights = captioner.model.state_dict()
            self._model = LanguageModel(config).eval()
            own = self._model.state_dict().keys()
            self._model.load_state_dict({name: weights[name] for name in own})

    def open(self) -> SamplerBatch:
        state = open_state(self._model, self._ids, prompt_refresh_interval=INTERVAL)
        return SamplerBatch(self._model, state, INTERVAL)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    captioner = Captioner.load(options.model)
    draw(
        options.out,
        {
            "prefix attention: a prompt is computed once": run(captioner, "prefix"),
            f"full attention, prompts refreshed every {INTERVAL} steps": run(captioner, "full"),
        },
    )


def run(captioner: Captioner, attention: PrefixAttention) -> list[StepTrace]:
    """Requests of several kinds that arrive while others run."""
    traces: list[StepTrace] = []
    limits = Limits(places=8, rows=2**20, prefill_rows=256, waiting=99)
    opener = Opener(captioner, attention)
    loop = Loop(opener, Scheduler(limits), Metrics(), traces.append)
    generator = torch.Generator().manual_seed(0)
    size = captioner.config.language.hidden_size
    jobs = []
    for number in range(len(ARRIVALS)):
        rows_PD = torch.randn(50 + 3 * (number % 5), size, generator=generator)
        settings = SamplerSettings(
            canvas_length=(64, 32, 48)[number % 3],
            tokens_per_step=(4, 2, 8, 4)[number % 4],
            stop=(),
        )
        jobs.append(Job(Prepared(rows_PD, 0, len(rows_PD)), settings, lambda event: None))
    step = 0
    while step <= ARRIVALS[-1] or not loop.idle:
        for job, arrival in zip(jobs, ARRIVALS, strict=True):
            if arrival == step:
                loop.submit(job)
        if step == 6:
            loop.cancel(jobs[CANCELLED])
        loop.step()
        step += 1
    return traces


def draw(path: Path, runs: dict[str, list[StepTrace]]) -> None:
    """One panel a run, under each other."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    figure, axes = plt.subplots(len(runs), 1, figsize=(9, 8), sharex=True, layout="constrained")
    for axis, (title, traces) in zip(axes, runs.items(), strict=True):
        _panel(cast("Axes", axis), title, traces)
    axes[-1].set_xlabel("step of the engine")
    handles = [Patch(color=colour, label=name) for name, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Axes, title: str, traces: list[StepTrace]) -> None:
    for step, trace in enumerate(traces):
        for number in trace.running:
            kind = "denoise"
            if number in trace.joined:
                kind = "prefill"
            elif number in trace.refreshed:
                kind = "refresh"
            axis.barh(number, 0.92, left=step + 0.04, height=0.8, color=COLOURS[kind])
    left = max(step for step, trace in enumerate(traces) if CANCELLED in trace.running)
    axis.annotate(
        "cancelled", (left + 1, CANCELLED), (4, 0), textcoords="offset points", va="center", size=8
    )
    axis.set_title(title, loc="left", size=10)
    axis.set_ylabel("request")
    axis.set_xlim(0, len(traces))
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()

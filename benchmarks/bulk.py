"""Captions a second of `rediff caption`'s local path against those of the bare engine.

    python -m benchmarks.bulk --json benchmarks/results/bulk.json
    python -m benchmarks.bulk --n 32 --rounds 1 --canvas 16

The bare engine is given the same pictures, already decoded, from one thread that encodes them;
the local path reads and decodes PNG files in worker processes, keeps the order and writes. Model
and workers are started before the clocks. Rounds alternate, because other work on the machine
slows both: quote the ratios. A ratio of processor time counts this process alone; decoding is the
workers', and takes processors of its own.
"""

from __future__ import annotations

import argparse
import json
import queue
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

from benchmarks.client import Seconds
from benchmarks.sampler import hardware
from rediff_model.sampling.outputs import Generation
from server.bulk.inputs import Inputs
from server.bulk.item import Item
from server.bulk.local import Local
from server.bulk.order import Order
from server.bulk.outputs import Doubt, Sidecars
from server.bulk.run import Progress, Run
from server.bulk.tables import Table
from server.bulk.wording import Wording
from server.engine.engine import Engine
from server.engine.model_runner import SamplerRunner
from server.engine.request import Failure, Job
from server.images.decode import image_limits
from server.metrics import Metrics
from server.settings import Settings
from training.stickers.atlas import Atlas
from training.stickers.render import render
from training.stickers.sample import sample_scene

if TYPE_CHECKING:
    from PIL import Image

    from server.bulk.outputs import Output
    from server.engine.request import Event


def bare(
    runner: SamplerRunner, settings: Settings, order: Order, pictures: list[Image.Image]
) -> Seconds:
    """The time a caption of the engine with all pictures at hand."""
    states: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine = Engine(lambda: runner, settings.engine(), Metrics(), states.put)
    engine.start()
    if states.get(timeout=600) != "ready":
        raise RuntimeError(f"the engine does not start: {engine.error}")
    fitted, left = order.fit(runner), len(pictures)
    ahead = 2 * settings.max_batch
    began = Seconds.now()
    for number, picture in enumerate(pictures):
        if number >= ahead:
            left -= _ended(done)
        engine.submit(Job(runner.prepare(picture, fitted.question), fitted.settings, done.put))
    while left:
        left -= _ended(done)
    seconds = began.since().per(len(pictures))
    engine.close()
    return seconds


def _ended(done: queue.SimpleQueue[Event]) -> int:
    event = done.get(timeout=600)
    if isinstance(event, Failure):
        raise RuntimeError(f"a request failed: {event.kind}")
    return isinstance(event, Generation)


def bulk(
    runner: SamplerRunner,
    settings: Settings,
    order: Order,
    folder: Path,
    output: Output,
    workers: int,
) -> Seconds:
    """The time a caption of a run over the folder."""
    limits = image_limits(settings)
    local = Local.open(lambda: runner, settings.engine(), order, limits, workers)
    try:
        # So that the workers' start is not counted, as the model's loading is not.
        first = next(iter(Inputs((folder,))))
        assert isinstance(first, Item)
        for number in range(workers):
            local.submit(-1 - number, first)
        for _ in range(workers):
            local.take()
        run = Run(local, output, Wording(), Doubt(None), _Strict())
        began = Seconds.now()
        run.over(Inputs((folder,)))
        return began.since().per(run.tally.captions)
    finally:
        local.close()
        output.close()


class _Strict(Progress):
    """Shows nothing; a picture without a caption ends the benchmark."""

    def __init__(self) -> None:
        super().__init__(lambda: None, shown=False)

    def failed(self, name: str, source: str, reason: str) -> None:
        raise RuntimeError(f"{source}: {reason}")


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Everything that the command prints."""
    torch.set_num_threads(options.threads)
    # Features that are kept from the round before would be no work.
    settings = Settings.read({"max_batch": options.batch, "vision_cache_bytes": 0})
    order = Order.read(settings, {"canvas_length": options.canvas}, None)
    runner = SamplerRunner.load(settings.engine())
    atlas = Atlas.load()
    pictures = [render(sample_scene(seed, atlas, split="test"), atlas) for seed in range(options.n)]
    engine: list[Seconds] = []
    paths: dict[str, list[Seconds]] = {"sidecars": [], "jsonl": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set"
        folder.mkdir()
        for number, picture in enumerate(pictures):
            picture.save(folder / f"{number:06d}.png")
        for turn in range(options.rounds):
            engine.append(bare(runner, settings, order, pictures))
            outputs: dict[str, Output] = {
                "sidecars": Sidecars(
                    Path(name) / f"texts-{turn}", None, Doubt(None), overwrite=False
                ),
                "jsonl": Table(
                    Path(name) / f"{turn}.jsonl", None, Doubt(None), "jsonl", {}, overwrite=True
                ),
            }
            for kind, output in outputs.items():
                paths[kind].append(bulk(runner, settings, order, folder, output, options.workers))
    return {
        "options": {key: value for key, value in vars(options).items() if key != "json"},
        "hardware": hardware("cpu"),
        "torch": torch.__version__,
        "engine": [asdict(one) for one in engine],
        **{kind: [asdict(one) for one in found] for kind, found in paths.items()},
        "throughput_of_engine": {
            kind: round(median(a.wall / b.wall for a, b in zip(engine, found, strict=True)), 3)
            for kind, found in paths.items()
        },
        "cpu_of_engine": {
            kind: round(median(b.cpu / a.cpu for a, b in zip(engine, found, strict=True)), 3)
            for kind, found in paths.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--n", type=int, default=64, help="pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--canvas", type=int, help="tokens; the model's if left out")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    text = json.dumps(measure(options), indent=2)
    print(text)  # noqa: T201
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

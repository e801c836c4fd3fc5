"""Load on a running server: latency, goodput, and an account of every request.

    python -m benchmarks.load --concurrency 1 8 32
    python -m benchmarks.load --rate 5 --sse --base-url http://127.0.0.1:8000
    python -m benchmarks.load --times-capacity 0.5 10 --seconds 60 --json out.json

With `--concurrency` so many callers each send the next request when they have their answer (closed
loop); with `--rate` requests a second come by chance and wait for nobody (open loop, Poisson); with
`--times-capacity` the rate is a multiple of what the server manages for as many callers as its
batch holds, measured before and after, since other work on the machine changes it; captions by the
processor time of the server are what it would not change. Without
`--base-url` a server with the shipped checkpoint is started on a free port; it keeps no features of
pictures, so that a picture that comes again costs as much as a new one. Pictures are sticker
scenes, drawn before the clocks start.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import os
import platform
import random
import shlex
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from benchmarks.outcomes import Outcome, summarise
from benchmarks.serving import Memory, Server, cpu_seconds, started
from benchmarks.wire import Lost, Wire
from training.stickers.atlas import Atlas
from training.stickers.render import render
from training.stickers.sample import sample_scene

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator, Sequence

    from training.stickers.graph import Scene

UNCACHED = ("--vision-cache-bytes", "0")
"""Options of servers that are started here."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests to one server, one a picture and then from the first again."""

    wire: Wire
    requests: Sequence[bytes]

    async def closed(self, callers: int, seconds: float) -> tuple[list[Outcome], float]:
        """`callers` at a time send for `seconds`; outcomes, and when it began."""
        places = itertools.cycle(range(len(self.requests)))
        began = time.perf_counter()
        done: list[Outcome] = []

        async def call() -> None:
            while time.perf_counter() < began + seconds:
                done.append(await self._send(next(places), time.perf_counter()))

        await asyncio.gather(*(call() for _ in range(callers)))
        return done, began

    async def opened(self, rate: float, seconds: float, seed: int) -> tuple[list[Outcome], float]:
        """`rate` requests a second on average for `seconds`, and the wait for their answers."""
        chance = random.Random(seed)
        places = itertools.cycle(range(len(self.requests)))
        began = time.perf_counter()
        due, sending = began + chance.expovariate(rate), []
        while due < began + seconds:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            sending.append(asyncio.create_task(self._send(next(places), due)))
            due += chance.expovariate(rate)
        return await asyncio.gather(*sending), began

    async def each_once(self, callers: int) -> list[Outcome]:
        """Every picture once, `callers` at a time; outcomes in the order of the pictures."""
        places = iter(range(len(self.requests)))
        done: list[Outcome] = []

        async def call() -> None:
            done.extend([await self._send(place, time.perf_counter()) for place in places])

        await asyncio.gather(*(call() for _ in range(callers)))
        return sorted(done, key=lambda outcome: outcome.place)

    async def _send(self, place: int, due: float) -> Outcome:
        sent = time.perf_counter()
        try:
            result: Any = await self.wire.send(self.requests[place])
        except Lost as reason:
            result = reason
        return Outcome(due, sent, time.perf_counter(), result, place)


def pictures(count: int, first_seed: int = 0) -> tuple[list[Scene], list[bytes]]:
    """Test scenes, and each as a PNG file."""
    atlas, files = Atlas.load(), []
    scenes = [sample_scene(first_seed + seed, atlas, split="test") for seed in range(count)]
    for scene in scenes:
        buffer = BytesIO()
        render(scene, atlas).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return scenes, files


def caption_bodies(files: Sequence[bytes], sampling: dict[str, Any], *, sse: bool) -> list[bytes]:
    """Bodies of `POST /caption`."""
    return [
        json.dumps(
            {
                "image": {"base64": base64.b64encode(file).decode()},
                "sampling": sampling,
                "stream": sse,
            }
        ).encode()
        for file in files
    ]


@contextmanager
def server_of(options: argparse.Namespace) -> Iterator[Server]:
    """The server at `--base-url`, or one started for the benchmark."""
    if options.base_url is not None:
        yield Server(options.base_url)
        return
    with started([*UNCACHED, *shlex.split(options.serve)]) as server:
        yield server


def add_server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", help="a server that runs; without it one is started")
    parser.add_argument(
        "--serve", default="--threads 1", help="options of the server that is started"
    )
    parser.add_argument("--api-key", help="sent as a bearer token")
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="seconds until an answer is lost"
    )
    parser.add_argument("--note", default="", help="what else runs on the machine")
    parser.add_argument("--json", type=Path, help="write the figures here")


def wire_of(server: Server, options: argparse.Namespace) -> Wire:
    key = {} if options.api_key is None else {"authorization": f"Bearer {options.api_key}"}
    return Wire(server.address, key, options.timeout)


def about(options: argparse.Namespace, arguments: Sequence[str] | None) -> dict[str, Any]:
    """Under which circumstances figures came about."""
    given = sys.argv[1:] if arguments is None else arguments
    return {
        "command": shlex.join(["python", "-m", options.module, *given]),
        "hardware": f"{platform.machine()}, {os.cpu_count()} processors",
        "load_average_before": os.getloadavg()[0],
        "note": options.note,
    }


class Runs:
    """The runs of one command, each with its figures."""

    def __init__(self, load: Load, pid: int | None, options: argparse.Namespace) -> None:
        self._load = load
        self._pid = pid
        self._options = options
        self._cpu_rates: list[float | None] = []
        self.figures: list[dict[str, Any]] = []

    async def all(self) -> dict[str, Any]:
        """What the command asks for."""
        options = self._options
        await self._load.each_once(1)
        for callers in options.concurrency:
            await self._closed(callers)
        for rate in options.rate:
            await self._opened(rate, {})
        if not options.times_capacity:
            return {"runs": self.figures}
        capacities = [await self._capacity()]
        for multiple in options.times_capacity:
            await self._opened(multiple * capacities[-1], {"times_capacity": multiple})
            capacities.append(await self._capacity())
            self.figures[-1]["goodput_of_capacity"] = self.figures[-1]["goodput_per_second"] / mean(
                capacities[-2:]
            )
        return {
            "capacity_per_second": capacities,
            "capacity_per_server_cpu_second": self._cpu_rates,
            "runs": self.figures,
        }

    async def _capacity(self) -> float:
        """Captions a second for as many callers as keep the batch full."""
        warm, seconds = self._options.warm_up, self._options.capacity_seconds
        callers = self._options.capacity_callers
        used = cpu_seconds(self._pid)
        outcomes, began = await self._load.closed(callers, warm + seconds)
        self._cpu_rates.append(self._per_cpu_second(outcomes, used))
        rate: float = summarise(outcomes, began + warm, seconds, seconds)["captions_per_second"]
        if rate == 0:
            raise RuntimeError(f"no caption within {seconds:g} s; the first: {outcomes[0].kind}")
        return rate

    async def _closed(self, callers: int) -> None:
        seconds = self._options.warm_up + self._options.seconds
        await self._run({"concurrency": callers}, self._load.closed(callers, seconds))

    async def _opened(self, rate: float, labels: dict[str, Any]) -> None:
        seconds, seed = self._options.warm_up + self._options.seconds, self._options.seed
        await self._run({"rate": rate, **labels}, self._load.opened(rate, seconds, seed))

    async def _run(
        self, labels: dict[str, Any], work: Awaitable[tuple[list[Outcome], float]]
    ) -> None:
        cpu, wall, used = time.process_time(), time.perf_counter(), cpu_seconds(self._pid)
        async with Memory(self._pid) as memory:
            outcomes, began = await work
        busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
        options = self._options
        start = began + options.warm_up
        figures = summarise(outcomes, start, options.seconds, options.objective)
        figures |= {
            "captions_per_server_cpu_second": self._per_cpu_second(outcomes, used),
            "server_megabytes": memory.to_json(),
            "sender_cpu_fraction": busy,
        }
        self.figures.append(labels | {"sse": options.sse} | figures)
        sys.stderr.write(f"{labels}: {figures['outcomes']}\n")

    def _per_cpu_second(self, outcomes: Sequence[Outcome], since: float) -> float | None:
        """All captions of a run by the processor time that the server has taken `since` then."""
        used = cpu_seconds(self._pid) - since
        count = sum(outcome.kind == "200" for outcome in outcomes)
        return count / used if used > 0 else None


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_server_options(parser)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[], help="callers, each run")
    parser.add_argument("--rate", type=float, nargs="+", default=[], help="requests a second")
    parser.add_argument("--times-capacity", type=float, nargs="+", default=[])
    parser.add_argument("--capacity-callers", type=int, default=32)
    parser.add_argument("--capacity-seconds", type=float, default=15.0)
    parser.add_argument("--warm-up", type=float, default=10.0, help="seconds before rates count")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run, after that")
    parser.add_argument("--objective", type=float, default=10.0, help="latency that is good")
    parser.add_argument("--sse", action="store_true", help="ask for steps as they come")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--sampling", type=json.loads, default={}, help="JSON, as in /caption")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.set_defaults(module="benchmarks.load")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark; `argv` as on the command line, None for that of the process."""
    options = parser_of().parse_args(argv)
    circumstances = about(options, argv)
    _, files = pictures(options.pictures)
    bodies = caption_bodies(files, options.sampling, sse=options.sse)

    async def run(server: Server) -> dict[str, Any]:
        wire = wire_of(server, options)
        load = Load(wire, [wire.post("/caption", body) for body in bodies])
        try:
            return await Runs(load, server.pid, options).all()
        finally:
            await wire.close()

    with server_of(options) as server:
        result = circumstances | asyncio.run(run(server))
    text = json.dumps(result, indent=2)
    print(text)  # noqa: T201
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

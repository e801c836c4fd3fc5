"""What speed costs in quality: tokens a step, presets and concurrency, on scenes with exact scores.

    python -m benchmarks.sweep --json out.json --plot out.png
    python -m benchmarks.sweep --n 8 --tokens-per-step 4 16 --presets rediff mask --concurrency 4

Every way of decoding captions the same test scenes over HTTP, streamed, on the server at
`--base-url` or on one that is started as for `benchmarks.load`. Quality does not depend on the
machine; compare captions a second within one table only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Final

from benchmarks.load import (
    Load,
    about,
    add_server_options,
    caption_bodies,
    pictures,
    server_of,
    wire_of,
)
from benchmarks.outcomes import percentiles
from rediff_model.sampling.params import PRESETS
from training.stickers.atlas import default_names
from training.stickers.score import METRICS, score, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from benchmarks.outcomes import Outcome
    from training.stickers.graph import Scene

COLUMNS: Final = (
    ("captions_per_second", "captions/s"),
    ("p50", "p50 s"),
    ("p95", "p95 s"),
    ("first_step", "first s"),
    ("steps", "steps"),
    ("revisions", "revised"),
    ("coverage", "coverage"),
    ("factuality", "factual"),
)
COLOURS: Final = {
    "rediff": "#d95f02",
    "mask": "#7570b3",
    "adaptive": "#1b9e77",
    "careful": "#e7298a",
}
MARKERS: Final = "osD^v<>"
FIRST_SCENE: Final = 8_000_000


def figures_of(outcomes: Sequence[Outcome], scenes: Sequence[Scene]) -> dict[str, Any]:
    """Speed and quality of one way of decoding; `outcomes` in the order of `scenes`.

    Raises:
        RuntimeError: a request got no caption.
    """
    if failed := [outcome.kind for outcome in outcomes if outcome.kind != "200"]:
        raise RuntimeError(f"{len(failed)} requests got no caption, the first: {failed[0]}")
    names = default_names()
    answers = [outcome.caption for outcome in outcomes]
    scores = [
        score(scene, answer["caption"], names)
        for scene, answer in zip(scenes, answers, strict=True)
    ]
    wall = max(one.ended for one in outcomes) - min(one.sent for one in outcomes)
    return {
        "captions_per_second": len(outcomes) / wall,
        "latency_seconds": percentiles([one.seconds for one in outcomes]),
        "first_step_seconds": percentiles([one.steps[0] - one.due for one in outcomes]),
        "steps": mean(answer["steps"] for answer in answers),
        "revisions": mean(answer["revisions"] for answer in answers),
        "quality": asdict(summarise(scores)),
    }


async def sweep(
    ways: Sequence[tuple[dict[str, Any], int, Load]], scenes: Sequence[Scene]
) -> list[dict[str, Any]]:
    """Rows of figures, one a way of decoding and number of callers."""
    rows = []
    sys.stdout.write(f"{'':32}" + "".join(f"{title:>11}" for _, title in COLUMNS) + "\n")
    for sampling, callers, load in ways:
        row = sampling | {"concurrency": callers}
        row |= figures_of(await load.each_once(callers), scenes)
        rows.append(row)
        sys.stdout.write(line_of(row) + "\n")
        sys.stdout.flush()
    return rows


def line_of(row: dict[str, Any]) -> str:
    """A line of the table."""
    values = row | {metric: row["quality"][metric]["mean"] for metric in METRICS}
    values |= {name: row["latency_seconds"][name] for name in ("p50", "p95")}
    values["first_step"] = row["first_step_seconds"]["p50"]
    head = f"{row['preset']:9}{row['tokens_per_step']:3} a step, {row['concurrency']:3} callers"
    return f"{head:32}" + "".join(f"{values[name]:>11.3f}" for name, _ in COLUMNS)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both coordinates, the first coordinate falling."""
    best: list[tuple[float, float]] = []
    for point in sorted(set(points), reverse=True):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Coverage and factuality against captions a second."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharex=True, layout="constrained")
    callers = sorted({row["concurrency"] for row in rows})
    markers = dict(zip(callers, MARKERS, strict=False))
    for axis, metric in zip(axes, ("coverage", "factuality"), strict=True):
        _panel(axis, rows, metric, markers)
    handles = [
        Line2D([], [], color=COLOURS[name], linewidth=2, label=name)
        for name in COLOURS
        if any(row["preset"] == name for row in rows)
    ]
    handles += [
        Line2D([], [], color="grey", marker=marker, linestyle="", label=f"concurrency {number}")
        for number, marker in markers.items()
    ]
    handles.append(Line2D([], [], color="black", linestyle=":", label="none is better in both"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(
    axis: Axes, rows: Sequence[dict[str, Any]], metric: str, markers: dict[int, str]
) -> None:
    points = []
    for preset, callers in product(COLOURS, markers):
        part = [row for row in rows if (row["preset"], row["concurrency"]) == (preset, callers)]
        part.sort(key=lambda row: row["tokens_per_step"])
        xs = [row["captions_per_second"] for row in part]
        ys = [row["quality"][metric]["mean"] for row in part]
        points += list(zip(xs, ys, strict=True))
        axis.plot(xs, ys, color=COLOURS[preset], marker=markers[callers], linewidth=1, alpha=0.8)
        for row, x, y in zip(part, xs, ys, strict=True):
            label = str(row["tokens_per_step"])
            axis.annotate(label, (x, y), (4, 4), textcoords="offset points", size=7)
    best = front(points)
    axis.plot(
        [x for x, _ in best],
        [y for _, y in best],
        color="black",
        linestyle=":",
        linewidth=2,
        zorder=0,
    )
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.set_title(f"{metric}; numbers are tokens a step", loc="left", size=10)
    axis.set_xlabel("captions a second")
    axis.spines[["top", "right"]].set_visible(False)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark; `argv` as on the command line, None for that of the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_server_options(parser)
    parser.add_argument("--n", type=int, default=64, help="scenes")
    parser.add_argument("--tokens-per-step", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=list(PRESETS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--plot", type=Path, help="draw quality against speed here")
    parser.set_defaults(module="benchmarks.sweep")
    options = parser.parse_args(argv)
    circumstances = about(options, argv)
    scenes, files = pictures(options.n, FIRST_SCENE)

    with server_of(options) as server:
        wire = wire_of(server, options)
        ways = [
            {"preset": preset, "tokens_per_step": tokens}
            for preset, tokens in product(options.presets, options.tokens_per_step)
        ]
        loads = [
            (way, callers, Load(wire, [wire.post("/caption", body) for body in bodies]))
            for way in ways
            for bodies in [caption_bodies(files, way, sse=True)]
            for callers in options.concurrency
        ]

        async def run() -> list[dict[str, Any]]:
            # One caption that does not count, for whatever is slower the first time.
            await Load(wire, loads[0][2].requests[:1]).each_once(1)
            try:
                return await sweep(loads, scenes)
            finally:
                await wire.close()

        rows = asyncio.run(run())
    if options.json is not None:
        result = circumstances | {"scenes": options.n, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        draw(options.plot, rows)


if __name__ == "__main__":
    main()

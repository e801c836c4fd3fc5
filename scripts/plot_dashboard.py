"""Draw the Grafana dashboard from a Prometheus that watches a server, for where no Grafana is.

Every query of every panel is asked over the last minutes, and drawn in the dashboard's own grid.

    rediff serve --threads 1 --max-batch 8 --max-queue 8 --request-timeout 20 &
    prometheus --config.file=prometheus.yml --web.listen-address=127.0.0.1:9090 &
    python -m benchmarks.load --base-url http://127.0.0.1:8000 --concurrency 4 --rate 2 8
    python scripts/plot_dashboard.py http://127.0.0.1:9090 docs/images/dashboard.png --minutes 4
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHBOARD = Path(__file__).parents[1] / "server" / "dashboards" / "rediff.json"
COLUMNS = 24
CELL = (0.58, 0.4)
"""Inches of one cell of the grid."""
UNITS = {"reqps": "requests/s", "s": "seconds", "percentunit": "%", "short": ""}
COLOURS = ("#3b7dd8", "#e0752d", "#4c9f50", "#a352cc", "#c4162a", "#8a7a00", "#0f8b8d", "#6b6b6b")
INK, PALE = "#24292e", "#8b949e"


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a panel."""

    name: str
    seconds: list[float]
    """Unix times."""
    values: list[float]
    """NaN where there is none."""

    @property
    def highest(self) -> float:
        return max((value for value in self.values if not isnan(value)), default=0.0)


@dataclass(frozen=True, slots=True)
class Range:
    """A Prometheus, and the time that is looked at."""

    address: str
    start: float
    end: float
    step: float
    """Seconds between points."""
    rate_interval: str

    @property
    def moments(self) -> list[float]:
        """Unix times of the points."""
        count = round((self.end - self.start) / self.step)
        return [self.start + number * self.step for number in range(count + 1)]

    def series(self, target: dict[str, Any]) -> list[Series]:
        """What one query of a panel finds, the dashboard's variables filled in."""
        query = target["expr"].replace("$__rate_interval", self.rate_interval)
        asked = {
            "query": query.replace("$instance", ".*"),
            "start": self.start,
            "end": self.end,
            "step": self.step,
        }
        answer = httpx.get(
            f"{self.address}/api/v1/query_range", params=asked, timeout=30, trust_env=False
        )
        answer.raise_for_status()
        found = []
        for one in answer.json()["data"]["result"]:
            known = {at: float(value) for at, value in one["values"]}
            name = legend(target.get("legendFormat", ""), one["metric"])
            found.append(Series(name, self.moments, [known.get(at, nan) for at in self.moments]))
        return found


def legend(template: str, labels: dict[str, str]) -> str:
    """Grafana's `{{label}}` filled in."""
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), template)


def short(value: float) -> str:
    """A number as Grafana writes it on an axis."""
    for size, letter in ((1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def shown(value: float, panel: dict[str, Any]) -> str:
    """A stat panel's value as Grafana writes it, near enough."""
    defaults = panel["fieldConfig"]["defaults"]
    for mapping in defaults.get("mappings") or ():
        if text := mapping["options"].get(f"{value:g}", {}).get("text"):
            return str(text)
    if defaults["unit"] == "percentunit":
        return f"{value:.1%}"
    unit = {"reqps": " req/s", "s": " s"}.get(defaults["unit"], "")
    return f"{value:.3g}{unit}"


def draw_stat(axes: Axes, panel: dict[str, Any], series: Sequence[Series], period: Range) -> None:
    """The last value, large, above a faint area of those before it."""
    axes.set_axis_off()
    # The area keeps to the lower part of its panel.
    for one in series:
        axes.fill_between(one.seconds, one.values, color=COLOURS[0], alpha=0.18, linewidth=0)
    highest = max((one.highest for one in series), default=0.0)
    axes.set(xlim=(period.start, period.end), ylim=(0, 2.5 * highest or 1))
    known = [value for one in series for value in one.values if not isnan(value)]
    text = shown(known[-1], panel) if known else "no data"
    axes.text(
        0.5, 0.6, text, transform=axes.transAxes, ha="center", va="center", size=22, color=INK
    )


def draw_lines(axes: Axes, panel: dict[str, Any], series: Sequence[Series], period: Range) -> None:
    """Lines over time, or areas on top of each other where the panel stacks."""
    defaults = panel["fieldConfig"]["defaults"]
    percent = defaults["unit"] == "percentunit"
    stacked = defaults["custom"].get("stacking", {}).get("mode") == "normal"
    floor = [0.0] * len(period.moments)
    highest = 0.0
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        tops = [value + low for value, low in zip(one.values, floor, strict=True)]
        axes.plot(one.seconds, tops, color=colour, linewidth=1.1, label=one.name)
        axes.fill_between(one.seconds, floor, tops, color=colour, alpha=0.1, linewidth=0)
        highest = max(highest, Series(one.name, one.seconds, tops).highest)
        if stacked:
            floor = [low if isnan(top) else top for top, low in zip(tops, floor, strict=True)]
    axes.set_xlim(period.start, period.end)
    axes.set_ylim(0, highest * 1.08 or 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if percent else short(value))
    axes.xaxis.set_major_locator(ticks(period))
    axes.xaxis.set_major_formatter(lambda at, _: time.strftime("%H:%M", time.gmtime(at)))
    axes.grid(color="#e4e7eb", linewidth=0.6)
    axes.tick_params(labelsize=7, colors=PALE, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if all(isnan(value) for one in series for value in one.values):
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=PALE, size=9)
    elif any(one.name for one in series):
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.02, -0.1),
            ncols=5,
            fontsize=6.5,
            frameon=False,
            handlelength=1,
            columnspacing=1,
            labelcolor=INK,
        )


def ticks(period: Range) -> Any:
    """Full minutes, at most about six."""
    from matplotlib.ticker import MultipleLocator

    return MultipleLocator(60 * max(1, round((period.end - period.start) / 360)))


def draw(dashboard: dict[str, Any], period: Range) -> Figure:
    """The whole dashboard."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = COLUMNS * CELL[0], rows * CELL[1]
    figure = Figure(figsize=(width, height), facecolor="#f4f5f7")

    def place(panel: dict[str, Any], *inches: float) -> tuple[float, float, float, float]:
        """A panel's part of the figure, less margins left, bottom, right and top."""
        at, (left, bottom, right, top) = panel["gridPos"], inches
        return (
            (at["x"] * CELL[0] + left) / width,
            1 - ((at["y"] + at["h"]) * CELL[1] - bottom) / height,
            (at["w"] * CELL[0] - left - right) / width,
            (at["h"] * CELL[1] - bottom - top) / height,
        )

    for panel in panels:
        x, y, w, h = place(panel, 0.05, 0.05, 0.05, 0.05)
        if panel["type"] == "row":
            figure.text(
                x, y + h / 2, panel["title"], size=11, weight="bold", va="center", color=INK
            )
            continue
        box = FancyBboxPatch(
            (x, y), w, h, boxstyle="square,pad=0", facecolor="white", edgecolor="#dfe3e8", zorder=-1
        )
        figure.add_artist(box)
        unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
        heading = panel["title"] + (f", {unit}" if unit and panel["type"] != "stat" else "")
        figure.text(
            x + 0.08 / width, y + h - 0.16 / height, heading, size=8.5, va="center", color=INK
        )
        series = [one for target in panel["targets"] for one in period.series(target)]
        if panel["type"] == "stat":
            axes = figure.add_axes(place(panel, 0.05, 0.05, 0.05, 0.35), facecolor="none")
            draw_stat(axes, panel, series, period)
        else:
            axes = figure.add_axes(place(panel, 0.5, 0.6, 0.15, 0.4), facecolor="none")
            draw_lines(axes, panel, series, period)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("prometheus", help="its address")
    parser.add_argument("target", type=Path, help="the PNG file to write")
    parser.add_argument("--minutes", type=float, default=30.0, help="that are shown")
    parser.add_argument("--until", type=float, default=time.time(), help="Unix time; now")
    parser.add_argument("--step", type=float, default=2.0, help="seconds between points")
    parser.add_argument(
        "--rate-interval", default="20s", help="for rates: at least four times between two scrapes"
    )
    options = parser.parse_args()
    # Whole steps, so that all queries are asked for the same moments.
    end = options.until // options.step * options.step
    period = Range(
        options.prometheus,
        end - 60 * options.minutes,
        end,
        options.step,
        options.rate_interval,
    )
    figure = draw(json.loads(DASHBOARD.read_text(encoding="utf-8")), period)
    figure.savefig(options.target, dpi=100, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()

"""An experiment's figures as a text table, a plot, and a section of a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

PLOTTED = ("coverage", "factuality", "fluency")
COLUMNS = ("coverage", "factuality", "chair_i", "object_recall", "fluency", "perfect")
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
    "#8c6d31",
    "#7f7f7f",
)

Row = dict[str, Any]


def labels(figures: dict[str, Any]) -> dict[str, str]:
    """Branch name to what it is called."""
    return {branch["name"]: branch["label"] for branch in figures["branches"]}


def table(figures: dict[str, Any]) -> str:
    """A Markdown table: a line a branch and way of decoding, means and 95 % intervals."""
    refreshed = len({row["refresh"] for row in figures["rows"]}) > 1
    head = ["branch", "tokens/step", "refining", *(["refresh"] if refreshed else []), *COLUMNS]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    named = labels(figures)
    for row in figures["rows"]:
        cells = [
            named[row["branch"]],
            str(row["tokens_per_step"]),
            "on" if row["refine"] else "off",
            *([_interval(row["refresh"])] if refreshed else []),
            *(_cell(row[metric]) for metric in COLUMNS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def section(figures: dict[str, Any], picture: str) -> str:
    """A section of a Markdown page: question, what was run, picture, table."""
    evaluation = figures["evaluation"]
    seeds = ", ".join(map(str, evaluation["seeds"]))
    steps = {branch["label"]: branch for branch in figures["branches"]}
    runs = "; ".join(
        f"{label} {branch['steps']} in all"
        + (f", {branch['seconds'] / 60:.0f} min for its own" if branch["seconds"] else "")
        for label, branch in steps.items()
    )
    return "\n\n".join(
        (
            f"## {figures['experiment']}",
            figures["question"],
            f"Size: {figures['size']}. Evaluated on {evaluation['scenes']} unseen scenes of each "
            f"of the seeds {seeds}; in brackets the 95 % interval over all of them. Optimiser "
            f"steps: {runs}.",
            f"![{figures['experiment']}]({picture})",
            table(figures),
        )
    )


def plot(figures: dict[str, Any], path: Path) -> None:
    """A panel a metric: quality against tokens per step, or refresh interval, or by branch."""
    from matplotlib.figure import Figure

    rows: list[Row] = figures["rows"]
    refreshes = list(dict.fromkeys(row["refresh"] for row in rows))
    if len(refreshes) > 1:
        place: Callable[[Row], int] = lambda row: refreshes.index(row["refresh"])  # noqa: E731
        ticks, title = [_interval(value) for value in refreshes], "steps between prompt refreshes"
    else:
        speeds = sorted({row["tokens_per_step"] for row in rows})
        place = lambda row: speeds.index(row["tokens_per_step"])  # noqa: E731
        ticks, title = [str(speed) for speed in speeds], "tokens per step"
    figure = Figure(figsize=(4.2 * len(PLOTTED), 3.6), layout="constrained")
    for number, metric in enumerate(PLOTTED, 1):
        axes = figure.add_subplot(1, len(PLOTTED), number)
        for colour, refine, label, line in _lines(figures):
            xs = [place(row) for row in line]
            means = [row[metric]["mean"] for row in line]
            below = [row[metric]["mean"] - row[metric]["low"] for row in line]
            above = [row[metric]["high"] - row[metric]["mean"] for row in line]
            axes.errorbar(
                xs,
                means,
                yerr=[below, above],
                label=label,
                color=colour,
                marker="o",
                markersize=4,
                linestyle="-" if refine else ":",
                capsize=2,
                linewidth=1.6,
            )
        axes.set_title(metric)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.set_xlabel(title)
        axes.set_ylim(0, 1.02)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _lines(figures: dict[str, Any]) -> Iterator[tuple[str, bool, str, Sequence[Row]]]:
    """Colour, refining, label and rows of every line of a panel."""
    named = labels(figures)
    shown = list(dict.fromkeys(row["branch"] for row in figures["rows"]))
    ways = sorted({row["refine"] for row in figures["rows"]})
    for number, branch in enumerate(shown):
        colour = _COLOURS[number % len(_COLOURS)]
        for refine in ways:
            suffix = "" if len(ways) == 1 else ", refining" if refine else ", frozen"
            line = [
                row
                for row in figures["rows"]
                if row["branch"] == branch and row["refine"] == refine
            ]
            yield colour, refine, named[branch] + suffix, line


def _cell(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} ({value['low']:.3f}–{value['high']:.3f})"  # noqa: RUF001


def _interval(value: int | None) -> str:
    return "never" if value is None else str(value)

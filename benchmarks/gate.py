"""A regression gate: ratios of a fresh run against the committed results, never times.

    python -m benchmarks.gate
    python -m benchmarks.gate --only engine sampler
    python -m benchmarks.gate --fresh folder

Runs each benchmark as its committed JSON was made, or with `--fresh` reads what an earlier run
wrote, and prints what every ratio was, is and may be. The exit status is 1 when one is beyond its
tolerance or missing, and 2 when two results cannot be compared. Tolerances of processor time are
above what a run on a busy two-core machine differed by from the committed one; those of the wall
clock are wider, and are there for time in which nobody computes. A change that moves a ratio for
the better, or for a good reason, commits the new JSON with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RESULTS: Final = Path(__file__).parent / "results"


class NotComparable(Exception):
    """Two results were not made the same way, or one cannot be read; the message is one line."""


@dataclass(frozen=True, slots=True)
class Check:
    """A ratio, and how much worse than the committed one it may be."""

    key: str
    """Where it stands in the JSON: names, and numbers of list items, with dots between."""
    better: Literal["higher", "lower"]
    relative: float = 0.0
    """Tolerated part of the committed ratio."""
    absolute: float = 0.0
    """Tolerated besides, in the ratio's own unit."""

    def bound(self, was: float) -> float:
        """The worst value that passes."""
        slack = self.relative * abs(was) + self.absolute
        return was - slack if self.better == "higher" else was + slack


@dataclass(frozen=True, slots=True)
class Suite:
    """A benchmark whose results are committed."""

    arguments: str
    """With which `python -m benchmarks.NAME` made them."""
    conditions: tuple[str, ...]
    """Keys that must be equal for two results to be comparable."""
    checks: tuple[Check, ...]


SUITES: Final = {
    "engine": Suite(
        "--rounds 1 --latency 3",
        ("requests", "batch", "tokens_per_step"),
        (
            Check("identical_fraction", "higher"),
            Check("cpu_ratio_to_reference", "higher", relative=0.15),
            Check("cpu_adaptive_ratio", "higher", relative=0.15),
            Check("cpu_latency_ratio", "lower", relative=0.15),
            Check("ratio_to_reference", "higher", relative=0.35),
            Check("adaptive_ratio", "higher", relative=0.35),
            Check("latency_ratio", "lower", relative=0.35),
            Check("coverage", "higher", absolute=0.01),
            Check("adaptive_coverage_delta", "higher", absolute=0.01),
            Check("adaptive_steps", "lower", relative=0.03),
            Check("overhead_fraction", "lower", absolute=0.01),
            Check("queued_slowdown", "lower", absolute=0.01),
            Check("longest_step_with_prefill_rows.1024", "lower", relative=0.5),
        ),
    ),
    "sampler": Suite(
        "--model rediff_model/checkpoints/embedded --n 16 --reference 6",
        ("batch", "threads"),
        (
            Check("identical_fraction", "higher"),
            Check("steps", "lower", relative=0.03),
            Check("ratio_to_reference", "higher", relative=0.35),
        ),
    ),
    "checkpoint": Suite(
        "",
        ("rows.0.dtype", "rows.1.dtype"),
        (
            Check("rows.0.ratio", "lower", absolute=0.02),
            Check("rows.1.ratio", "lower", absolute=0.02),
        ),
    ),
    "bulk": Suite(
        "--n 48 --rounds 3",
        ("options.n", "options.batch", "options.canvas", "options.workers"),
        (
            Check("cpu_of_engine.sidecars", "higher", relative=0.1),
            Check("cpu_of_engine.jsonl", "higher", relative=0.1),
            Check("throughput_of_engine.sidecars", "higher", relative=0.35),
            Check("throughput_of_engine.jsonl", "higher", relative=0.35),
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    was: float
    now: float | None
    check: Check

    @property
    def passes(self) -> bool:
        """Whether the ratio is within its tolerance; a missing or undefined one is not."""
        if self.now is None:
            return False
        bound = self.check.bound(self.was)
        return self.now >= bound if self.check.better == "higher" else self.now <= bound

    def line(self) -> str:
        """was, is, allowed, and the verdict."""
        now = "missing" if self.now is None else f"{self.now:.4f}"
        sign = ">=" if self.check.better == "higher" else "<="
        allowed = f"{sign} {self.check.bound(self.was):.4f}"
        verdict = "ok" if self.passes else "WORSE"
        return f"{self.name:46} {self.was:>9.4f} {now:>9} {allowed:>11}  {verdict}"


def compare(name: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Row]:
    """The checks of a suite on a committed and a fresh result.

    Raises:
        NotComparable: they were made with other options, or the committed one lacks a ratio.
    """
    suite = SUITES[name]
    for key in suite.conditions:
        before, after = _at(was, key), _at(now, key)
        if before != after:
            raise NotComparable(f"{name}: {key} was {before!r} and is {after!r}")
    rows = []
    for check in suite.checks:
        committed = _number(was, check.key)
        if committed is None:
            raise NotComparable(f"{name}: the committed result has no number at {check.key}")
        rows.append(Row(f"{name} {check.key}", committed, _number(now, check.key), check))
    return rows


def _at(result: Mapping[str, Any], key: str) -> Any:
    """What stands at a key with dots; None if nothing does."""
    place: Any = result
    for name in key.split("."):
        try:
            place = place[int(name)] if isinstance(place, list) else place[name]
        except (LookupError, TypeError, ValueError):
            return None
    return place


def _number(result: Mapping[str, Any], key: str) -> float | None:
    value = _at(result, key)
    return float(value) if isinstance(value, int | float) else None


def read(folder: Path, name: str) -> dict[str, Any]:
    """A suite's result in a folder.

    Raises:
        NotComparable: it is not there, or no JSON object.
    """
    path = folder / f"{name}.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotComparable(f"{path}: {error}") from error
    if not isinstance(result, dict):
        raise NotComparable(f"{path} holds no object")
    return result


def run(name: str, folder: Path) -> None:
    """Make a suite's result anew, in a process of its own, with its log on stderr.

    Raises:
        NotComparable: the benchmark failed.
    """
    path = folder / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *shlex.split(SUITES[name].arguments)]
    sys.stderr.write(f"{shlex.join(command[1:])}\n")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["--json", str(path)]
    done = subprocess.run(command, env=one_thread, stdout=sys.stderr, check=False)
    if done.returncode:
        raise NotComparable(f"{name}: the benchmark ended with status {done.returncode}")


def gate(names: Sequence[str], committed: Path, fresh: Path | None) -> list[Row]:
    """Compare suites; without `fresh` they run first.

    Raises:
        NotComparable: a result is missing, broken or made in another way.
    """
    results = {name: read(committed, name) for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = fresh or Path(temporary)
        rows = []
        for name, was in results.items():
            if fresh is None:
                run(name, folder)
            rows += compare(name, was, read(folder, name))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; `arguments` as on the command line, None for those of the process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SUITES,
        default=list(SUITES),
        help="benchmarks; all if left out",
    )
    parser.add_argument("--against", type=Path, default=RESULTS, help="the committed results")
    parser.add_argument("--fresh", type=Path, help="compare the JSON files of this folder")
    options = parser.parse_args(arguments)
    try:
        rows = gate(options.only, options.against, options.fresh)
    except NotComparable as error:
        parser.error(str(error))
    sys.stdout.write(f"{'ratio':46} {'was':>9} {'is':>9} {'allowed':>11}\n")
    sys.stdout.writelines(f"{row.line()}\n" for row in rows)
    worse = sum(not row.passes for row in rows)
    sys.stdout.write(f"{worse} of {len(rows)} ratios are worse than allowed\n")
    raise SystemExit(1 if worse else 0)


if __name__ == "__main__":
    main()

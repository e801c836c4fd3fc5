"""The gate lets through what is within its tolerances, and nothing else."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import gate

if TYPE_CHECKING:
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]

ENGINE: dict[str, Any] = {
    "ratio_to_reference": 2.0,
    "identical_fraction": 1,
    "adaptive_ratio": 3.0,
    "adaptive_coverage_delta": -0.005,
    "overhead_fraction": 0.002,
    "latency_ratio": 0.6,
    "cpu_ratio_to_reference": 2.0,
    "cpu_adaptive_ratio": 3.0,
    "cpu_latency_ratio": 0.6,
    "coverage": 0.7,
    "adaptive_steps": 18.5,
    "queued_slowdown": -0.0001,
    "longest_step_with_prefill_rows": {"1024": 4.0},
    "seconds_per_caption": [{"wall": 0.3, "cpu": 0.3}],
    "requests": 64,
    "batch": 16,
    "tokens_per_step": 4,
}
WORSE: list[tuple[str, float]] = [
    ("identical_fraction", 0.99),
    ("cpu_ratio_to_reference", 1.69),
    ("cpu_adaptive_ratio", 2.5),
    ("cpu_latency_ratio", 0.7),
    ("ratio_to_reference", 1.2),
    ("adaptive_ratio", 1.9),
    ("latency_ratio", 0.82),
    ("coverage", 0.68),
    ("adaptive_coverage_delta", -0.016),
    ("adaptive_steps", 19.1),
    ("overhead_fraction", 0.013),
    ("queued_slowdown", 0.01),
]


def verdict(folder: Path, was: object, now: object, name: str = "engine") -> int:
    """The exit status of a comparison of two made-up results."""
    for side, result in {"was": was, "now": now}.items():
        (folder / side).mkdir(exist_ok=True)
        (folder / side / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")
    against = ["--against", str(folder / "was"), "--fresh", str(folder / "now")]
    with pytest.raises(SystemExit) as ended:
        gate.main(["--only", name, *against])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_same_figures_pass(tmp_path: Path, capsys: Capture) -> None:
    assert verdict(tmp_path, ENGINE, ENGINE) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(gate.SUITES["engine"].checks)
    expected = "engine cpu_ratio_to_reference 2.0000 2.0000 >= 1.7000 ok"
    assert " ".join(lines[2].split()) == expected
    assert lines[-1] == "0 of 13 ratios are worse than allowed"


@pytest.mark.parametrize(("key", "value"), WORSE)
def test_each_ratio_can_fail_alone(tmp_path: Path, capsys: Capture, key: str, value: float) -> None:
    assert verdict(tmp_path, ENGINE, ENGINE | {key: value}) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if line.endswith("WORSE")]
    assert [line.split()[1] for line in bad] == [key]


def test_a_ratio_inside_an_object_can_fail(tmp_path: Path) -> None:
    longer = {"longest_step_with_prefill_rows": {"1024": 6.1}}
    assert verdict(tmp_path, ENGINE, ENGINE | longer) == 1


def test_whatever_can_fail_is_tried() -> None:
    keys = {check.key for check in gate.SUITES["engine"].checks}
    assert keys == {key for key, _ in WORSE} | {"longest_step_with_prefill_rows.1024"}


def test_a_better_ratio_and_any_time_pass(tmp_path: Path) -> None:
    better = {"ratio_to_reference": 9.0, "latency_ratio": 0.1, "overhead_fraction": 0.0}
    slower = {"seconds_per_caption": [{"wall": 30.0, "cpu": 30.0}]}
    assert verdict(tmp_path, ENGINE, ENGINE | better | slower) == 0


@pytest.mark.parametrize("value", [float("nan"), None, "2.0"])
def test_a_ratio_that_is_no_number_fails(tmp_path: Path, value: object) -> None:
    assert verdict(tmp_path, ENGINE, ENGINE | {"cpu_ratio_to_reference": value}) == 1


def test_a_missing_ratio_fails(tmp_path: Path, capsys: Capture) -> None:
    less = {key: value for key, value in ENGINE.items() if key != "latency_ratio"}
    assert verdict(tmp_path, ENGINE, less) == 1
    assert "missing" in capsys.readouterr().out
    assert verdict(tmp_path, less, ENGINE) == 2
    assert "no number at latency_ratio" in capsys.readouterr().err


def test_results_of_other_options_are_not_compared(tmp_path: Path, capsys: Capture) -> None:
    assert verdict(tmp_path, ENGINE, ENGINE | {"requests": 8}) == 2
    assert "engine: requests was 64 and is 8" in capsys.readouterr().err


def test_items_of_lists_are_found(tmp_path: Path) -> None:
    rows = [{"dtype": "bfloat16", "ratio": 1.0}, {"dtype": "float32", "ratio": 1.0}]
    worse = [rows[0], rows[1] | {"ratio": 2.0}]
    assert verdict(tmp_path, {"rows": rows}, {"rows": rows}, "checkpoint") == 0
    assert verdict(tmp_path, {"rows": rows}, {"rows": worse}, "checkpoint") == 1
    assert verdict(tmp_path, {"rows": rows}, {"rows": rows[:1]}, "checkpoint") == 2


@pytest.mark.parametrize(
    ("content", "told"), [("[1]", "no object"), ("{", "Expecting"), (None, "No")]
)
def test_a_result_that_cannot_be_read_is_an_error(
    tmp_path: Path, capsys: Capture, content: str | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "engine.json").write_text(content, encoding="utf-8")
    folder = str(tmp_path)
    with pytest.raises(SystemExit) as ended:
        gate.main(["--only", "engine", "--against", folder, "--fresh", folder])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_benchmark_runs_as_its_result_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "engine.json").write_text(json.dumps(ENGINE), encoding="utf-8")
    statuses = [0, 3]
    commands: list[list[str]] = []

    def pretend(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        with open(command[-1], "w", encoding="utf-8") as file:
            json.dump(ENGINE, file)
        return subprocess.CompletedProcess(command, statuses[len(commands) - 1])

    monkeypatch.setattr(subprocess, "run", pretend)
    for status in (0, 2):
        with pytest.raises(SystemExit) as ended:
            gate.main(["--only", "engine", "--against", str(tmp_path)])
        assert ended.value.code == status
    expected = "-m benchmarks.engine --rounds 1 --latency 3 --json"
    assert " ".join(commands[0][1:-1]) == expected
    assert "the benchmark ended with status 3" in capsys.readouterr().err


@pytest.mark.parametrize("name", gate.SUITES)
def test_the_committed_results_can_be_compared(name: str) -> None:
    committed = gate.read(gate.RESULTS, name)
    assert all(row.passes for row in gate.compare(name, committed, committed))
    assert all(
        gate._at(committed, key) is not None or key == "options.canvas"
        for key in gate.SUITES[name].conditions
    )

"""The engine's benchmark runs at a small size, and its arithmetic is right."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks import cost, engine, timeline
from benchmarks.tracing import margin
from rediff_model.config import LanguageConfig
from rediff_model.sampling.outputs import Change, StepEvent
from rediff_model.sampling.reference import StepRecord
from server.engine.request import StepTrace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHAPE = LanguageConfig(100, 8, 16, 2, 2, 2, prefix_attention="prefix")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_command_writes_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    small = "--n 2 --rounds 2 --latency 1 --queued 20 --canvas 8 --batch 2 --prefill-rows"
    engine.main([*small.split(), "--json", str(out)])
    result = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == result
    for name in ("ratio_to_reference", "adaptive_ratio", "latency_ratio"):
        assert result[name] > 0
    assert result["identical_fraction"] == 1.0
    assert 0 <= result["overhead_fraction"] < 1
    assert abs(result["adaptive_coverage_delta"]) <= 1
    assert result["longest_step_with_prefill_rows"] == {}
    assert result["steps"] == result["reference_steps"] == 2


def test_operations_are_those_of_the_products() -> None:
    one = cost.forward(SHAPE, 10, 0, head_rows=0, itemsize=4)
    # Four square matrices of attention and three of the MLP, in two layers.
    weights = 2 * (4 * 8 * 8 + 3 * 8 * 16)
    assert one.flops == 2 * 10 * weights
    assert one.bytes == 4 * (weights + 2 * 2 * 8 * 10)
    attending = cost.forward(SHAPE, 10, 7, head_rows=3, itemsize=4)
    assert attending.flops - one.flops == 4 * 10 * 7 * 8 * 2 + 2 * 3 * 8 * 100


def test_a_step_of_two_requests_computes_twice_and_reads_weights_once() -> None:
    one, two = (cost.engine_step(SHAPE, 6, 4, running, itemsize=4) for running in (1, 2))
    assert two.flops == 2 * one.flops
    assert one.bytes < two.bytes < 2 * one.bytes
    slow = cost.reference_step(SHAPE, 6, 4, itemsize=4)
    assert slow.flops == cost.forward(SHAPE, 10, 10, head_rows=10, itemsize=4).flops


def record(**changes: object) -> StepRecord:
    """A step over two prompt rows and three canvas rows that revealed the first canvas row."""
    rows = torch.tensor([7, 29, 29])
    base = StepRecord(
        block=0,
        step_in_block=0,
        count=1,
        bound=3,
        masked_N=torch.tensor([False, False, True, True, True]),
        predicted_N=torch.tensor([0, 0, 7, 8, 9]),
        score_N=torch.tensor([0.0, 0.0, 0.5, 0.4, 0.3], dtype=torch.float64),
        revealed=(2,),
        revised=(),
        before_C=torch.tensor([29, 29, 29]),
        after_reveal_C=rows,
        after_C=rows,
        stop=3,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def event(*changes: Change) -> StepEvent:
    return StepEvent(0, 1, 4, 2, changes, (), False)


def test_the_margin_of_another_position_is_the_difference_of_both_choices() -> None:
    other = event(Change(1, 8, 0.5001, "reveal", 29))
    assert margin(record(), other) == pytest.approx(1e-4)


def test_the_margin_of_another_token_is_the_difference_of_both_tokens() -> None:
    other = event(Change(0, 6, 0.5003, "reveal", 29))
    assert margin(record(), other) == pytest.approx(3e-4)
    assert margin(record(), event(Change(0, 7, 0.5003, "reveal", 29))) == 0


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    traces = [
        StepTrace(float(step), 1.0, 1.0, 0, (step,), (0, step, timeline.CANCELLED), frozenset({0}))
        for step in range(1, 3)
    ]
    path = tmp_path / "timeline.png"
    timeline.draw(path, {"one": traces, "two": traces})
    assert path.stat().st_size > 5000

"""The benchmark for GPUs, at a size that a CPU runs in a second."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import saturation
from benchmarks.sampler import Work


def test_every_mode_is_timed_against_the_reference(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    small = ["--shape", "tiny", "--running", "1", "2", "--tokens-per-step", "64", "--passes", "3"]
    saturation.main(
        [*small, "--reference-steps", "1", "--peak-tflops", "1", "--profile", "--json", str(out)]
    )
    report = json.loads(out.read_text())
    figures = report["figures"]
    assert [(one["mode"], one["running"], one["tokens_per_step"]) for one in figures] == [
        (mode, running, tokens)
        for mode in saturation.MODES
        for running in (1, 2)
        for tokens in (64, None)
    ]
    for one in figures:
        assert one["captions_per_second"] > 0
        # A caption that adapted is measured against the reference at 4 of 128 tokens a step.
        passes = 2 if one["tokens_per_step"] else 32
        slow = passes * report["reference_step_seconds"][one["mode"]]
        assert one["ratio_to_reference"] == pytest.approx(one["captions_per_second"] * slow)
        assert 0 < one["utilisation"] < 1
        assert one["peak_bytes"] is None
    assert report["without_memory"] == []
    assert all(row["ms"] >= 0 and row["calls"] > 0 for row in report["where"]["prefix"])


def test_what_does_not_fit_is_reported_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = saturation.measure

    def short_of_memory(
        work: Work, interval: int | None, running: int, *, cuda_graphs: bool
    ) -> saturation.Times:
        if running == 2 and cuda_graphs:
            raise torch.OutOfMemoryError
        return measure(work, interval, running, cuda_graphs=cuda_graphs)

    monkeypatch.setattr(saturation, "measure", short_of_memory)
    out = tmp_path / "out.json"
    small = ["--shape", "tiny", "--running", "2", "1", "--tokens-per-step", "64"]
    small += ["--cuda-graphs", "off", "on", "--passes"]
    saturation.main([*small, "--modes", "prefix", "--reference-steps", "1", "--json", str(out)])
    report = json.loads(out.read_text())
    assert report["without_memory"] == [["prefix", 2, "on"]]
    ways = [(one["running"], one["cuda_graphs"]) for one in report["figures"]]
    # A CPU replays nothing, whatever was asked.
    assert ways == [(2, False), (1, False), (1, False)]

"""Recorded steps, with a stand-in for CUDA graphs that computes anew into the recorded result."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sampler_case import IDS, assert_equal, model_of, prompt_of

from rediff_model.runtime import cuda_graphs, prompt_cache
from rediff_model.sampling import reference
from rediff_model.sampling.params import SamplerSettings
from rediff_model.sampling.sampler import join, open_state, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from rediff_model.sampling.outputs import Generation

SETTINGS = [
    SamplerSettings(canvas_length=12, tokens_per_step=2, stop=()),
    SamplerSettings(canvas_length=12, tokens_per_step=1, stop=()),
    SamplerSettings(canvas_length=8, tokens_per_step=2, stop=()),
]
PROMPTS = [prompt_of(number, 3 + number) for number in range(3)]


class StandIn:
    """Counts what is recorded and replayed."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(
        self, run: Callable[[], Tensor], device: torch.device
    ) -> tuple[Tensor, Callable[[], None]]:
        self.recorded += 1
        result = run()

        def again() -> None:
            self.replayed += 1
            result.copy_(run())

        return result, again


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(cuda_graphs, "record", stand_in.record)
    monkeypatch.setattr(prompt_cache, "replays", lambda _: True)
    return stand_in


def captions(prefix_attention: Any, interval: int | None, *, cuda_graphs: bool) -> list[Generation]:
    """Two requests, and a third that joins after three steps."""
    model = model_of(prefix_attention, 0)
    state = open_state(model, IDS, prompt_refresh_interval=interval, cuda_graphs=cuda_graphs)
    state = join(model, state, (0, 1), PROMPTS[:2], SETTINGS[:2])
    for number in range(30):
        if number == 3:
            state = join(model, state, (2,), PROMPTS[2:], SETTINGS[2:])
        if state.slots is not None:
            state, _ = step(model, state)
    return [state.finished[request] for request in range(3)]


@pytest.mark.parametrize("prefix_attention", ["full", "prefix"])
def test_replayed_steps_give_the_captions_of_the_reference(
    prefix_attention: Any, graphs: StandIn
) -> None:
    for number, caption in enumerate(captions(prefix_attention, 1, cuda_graphs=True)):
        wanted = reference.generate(
            model_of(prefix_attention, 0), PROMPTS[number], SETTINGS[number], IDS
        )
        assert_equal(caption, wanted)
    # 12 steps in four layouts: two requests 3 steps, three 3, two again 1, and the last alone 5.
    assert graphs.recorded == 3
    assert graphs.replayed == 12 - 4


@pytest.mark.parametrize("interval", [3, None])
def test_steps_that_compute_a_prompt_are_launched_anew(
    interval: int | None, graphs: StandIn
) -> None:
    recorded = captions("full", interval, cuda_graphs=True)
    assert graphs.replayed > 0
    plain = captions("full", interval, cuda_graphs=False)
    for got, wanted in zip(recorded, plain, strict=True):
        assert_equal(got, wanted)


def test_what_cannot_be_recorded_is_launched_anew(
    monkeypatch: pytest.MonkeyPatch, graphs: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = captions("prefix", 1, cuda_graphs=False)

    asked = 0

    def refuse(run: Callable[[], Tensor], device: torch.device) -> None:
        nonlocal asked
        asked += 1
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs, "record", refuse)
    for got, one in zip(captions("prefix", 1, cuda_graphs=True), wanted, strict=True):
        assert_equal(got, one)
    assert "not permitted" in caplog.text
    assert asked == 1, "what failed once is not tried with every layout"


def test_nothing_is_recorded_unasked_or_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn()
    monkeypatch.setattr(cuda_graphs, "record", stand_in.record)
    captions("prefix", 1, cuda_graphs=True)
    monkeypatch.setattr(prompt_cache, "replays", lambda _: True)
    captions("prefix", 1, cuda_graphs=False)
    assert stand_in.recorded == 0


def test_a_recording_of_prompts_that_were_moved_refuses_to_run(graphs: StandIn) -> None:
    model = model_of("prefix", 0)
    old = join(model, open_state(model, IDS, cuda_graphs=True), range(3), PROMPTS, SETTINGS)
    for _ in range(2):
        old, _ = step(model, old)
    old.without(frozenset({0}))
    with pytest.raises(RuntimeError, match="moved the prompts"):
        step(model, old)


def test_a_failed_capture_is_closed_and_leaves_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Graph:
        def capture_begin(self, capture_error_mode: str) -> None:
            said.append(f"begin {capture_error_mode}")

        def capture_end(self) -> None:
            said.append("end")
            raise RuntimeError("failed due to a previous error during capture")

    @contextmanager
    def entered(what: str) -> Iterator[None]:
        said.append(f"enter {what}")
        try:
            yield
        finally:
            said.append(f"leave {what}")

    def forbidden() -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "stream")
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered(str(device)))
    with pytest.raises(RuntimeError, match="not permitted"):
        cuda_graphs.record(forbidden, torch.device("cuda:1"))
    assert said == [
        "enter cuda:1",
        "enter stream",
        "begin thread_local",
        "end",
        "leave stream",
        "leave cuda:1",
    ]

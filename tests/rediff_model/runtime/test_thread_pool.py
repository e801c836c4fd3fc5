"""Parts of a step on threads of their own."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sampler_case import IDS, assert_equal, model_of, prompt_of

from kernels import ops
from rediff_model.runtime import thread_pool
from rediff_model.runtime.thread_pool import spread
from rediff_model.sampling import reference, sampler
from rediff_model.sampling.params import SamplerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_jobs_run_side_by_side_with_one_thread_of_torch_each_and_come_back_in_order() -> None:
    together = threading.Barrier(2)

    def work(job: int) -> tuple[int, int, bool, str]:
        together.wait(timeout=60)
        threads = torch.get_num_threads()
        return job, threads, torch.is_inference_mode_enabled(), threading.current_thread().name

    found = spread(work, range(4))
    assert [job for job, *_ in found] == [0, 1, 2, 3]
    assert {(threads, inference) for _, threads, inference, _ in found} == {(1, True)}
    assert len({name for *_, name in found}) == 2


@pytest.mark.usefixtures("two_threads")
def test_a_single_short_job_has_one_thread_and_a_long_one_all() -> None:
    def threads(job: int) -> int:
        return torch.get_num_threads()

    assert spread(threads, [0], short=True) == [1]
    assert spread(threads, [0]) == [2]


@pytest.mark.usefixtures("two_threads")
def test_torch_keeps_its_threads_here_and_in_threads_to_come() -> None:
    thread_pool._crews.clear()
    spread(abs, [-1, -2])
    assert torch.get_num_threads() == 2
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [2]


@pytest.mark.parametrize(("threads", "jobs"), [(1, 3), (2, 1), (4, 3)])
def test_one_thread_or_fewer_jobs_than_threads_stay_here(
    threads: int, jobs: int, two_threads: None
) -> None:
    torch.set_num_threads(threads)
    names = spread(lambda _: threading.current_thread().name, range(jobs))
    assert set(names) == {threading.current_thread().name}


@pytest.mark.usefixtures("two_threads")
def test_nothing_runs_any_more_when_a_job_has_raised() -> None:
    done = threading.Event()

    def work(job: int) -> None:
        if job == 0:
            raise MemoryError("no room")
        time.sleep(0.2)
        done.set()

    with pytest.raises(MemoryError, match="no room"):
        spread(work, range(2))
    assert done.is_set()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("prefix_attention", ["full", "prefix"])
def test_captions_are_those_of_one_thread(
    prefix_attention: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rediff_model.sampling.sampler.ROWS_AT_LEAST", 4)
    monkeypatch.setattr("rediff_model.sampling.sampler.LOGITS_IN_CACHE", 64)
    ran: set[str] = set()
    real = ops.select_tokens

    def select(*arguments: Any) -> Any:
        ran.add(threading.current_thread().name)
        return real(*arguments)

    monkeypatch.setattr("kernels.ops.select_tokens", select)
    model = model_of(prefix_attention, 0)
    prompts = [prompt_of(number, 3 + number) for number in range(5)]
    chosen = [
        SamplerSettings(canvas_length=8 + 4 * (number % 2), tokens_per_step=2, seed=number)
        for number in range(5)
    ]
    captions = sampler.generate(model, prompts, chosen, IDS)
    assert all(name.startswith("rediff-step") for name in ran)
    for got, prompt, settings in zip(captions, prompts, chosen, strict=True):
        assert_equal(got, reference.generate(model, prompt, settings, IDS))


@pytest.mark.usefixtures("two_threads")
def test_no_thread_is_left_without_a_pass() -> None:
    model = model_of("prefix", 0)
    settings = [SamplerSettings(canvas_length=16, tokens_per_step=4)] * 6
    prompts = [prompt_of(number, 4) for number in range(6)]
    state = sampler.start(model, prompts, settings, IDS)
    assert state.slots is not None
    passes = list(state.slots.context._passes())
    assert [sum(part.canvas_rows for part in parts) for parts in passes] == [48, 48]


@pytest.mark.usefixtures("two_threads")
def test_what_other_jobs_made_is_freed_when_one_has_raised() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def work(job: int) -> torch.Tensor:
        if job == 0:
            raise MemoryError("no room")
        result = torch.zeros(1)
        made.append(weakref.ref(result))
        return result

    gc.disable()
    try:
        with suppress(MemoryError):
            spread(work, range(2))
        assert made[0]() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("two_threads")
def test_without_more_threads_jobs_run_here(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started = 0
    start = threading.Thread.start

    def only_one(thread: threading.Thread) -> None:
        nonlocal started
        started += 1
        if started > 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(thread_pool, "_crews", {})
    monkeypatch.setattr(threading.Thread, "start", only_one)
    for _ in range(2):
        names = spread(lambda _: threading.current_thread().name, range(2))
        assert set(names) == {threading.current_thread().name}
    assert started == 2, "it is tried once"
    assert torch.get_num_threads() == 2
    assert "can't start new thread" in caplog.text


@pytest.mark.usefixtures("two_threads")
def test_when_no_more_jobs_are_taken_the_rest_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = ThreadPoolExecutor(2)
    ended.shutdown()
    monkeypatch.setattr(thread_pool, "_crews", {2: ended})
    assert spread(abs, [-1, -2, -3]) == [1, 2, 3]

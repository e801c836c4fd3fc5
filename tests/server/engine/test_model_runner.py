"""The runner on a real, tiny model: the sampler's captions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest
import torch
from PIL import Image

from rediff_model.model import Captioner
from rediff_model.sampling import sampler
from rediff_model.sampling.params import SamplerSettings, SettingsError
from server.engine import model_runner
from server.engine.config import EngineConfig
from server.engine.model_runner import SamplerBatch, SamplerRunner
from server.engine.request import Job, OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rediff_model.sampling.outputs import Generation, StepEvent
    from server.engine.request import Batch

SETTINGS = [
    SamplerSettings(canvas_length=16),
    SamplerSettings(canvas_length=8, tokens_per_step=1, refine=False),
    SamplerSettings(canvas_length=24, block_length=8, temperature=0.5, seed=7),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runner(checkpoint: Path) -> SamplerRunner:
    return SamplerRunner.load(EngineConfig(str(checkpoint)))


def jobs(runner: SamplerRunner, *, watched: bool = False) -> list[Job]:
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    return [
        Job(runner.prepare(picture, question), settings, lambda event: None, wants_steps=watched)
        for picture, question, settings in zip(
            pictures, (None, "what is this", "a"), SETTINGS, strict=True
        )
    ]


def ended(batch: Batch, left: int) -> dict[int, Generation]:
    """Step until so many requests have their captions."""
    captions: dict[int, Generation] = {}
    for _ in range(100):
        if len(captions) == left:
            return captions
        captions |= batch.step().captions
    raise AssertionError(f"{left - len(captions)} requests do not end")


def opened(runner: SamplerRunner, jobs: list[Job]) -> SamplerBatch:
    batch = runner.open()
    batch.join(dict(enumerate(jobs)))
    return batch


def test_a_batch_gives_the_captions_of_the_sampler(runner: SamplerRunner, checkpoint: Path) -> None:
    captioner = Captioner.load(checkpoint)
    started = jobs(runner)
    expected = sampler.generate(
        captioner.model,
        [cast("torch.Tensor", job.prompt.rows) for job in started],
        SETTINGS,
        captioner.token_ids,
    )
    assert ended(opened(runner, started), 3) == dict(enumerate(expected))


def test_watched_jobs_tell_every_step_and_others_none(runner: SamplerRunner) -> None:
    started = jobs(runner, watched=True)
    started[1].wants_steps = False
    batch = opened(runner, started)
    steps: list[tuple[int, StepEvent]] = []
    captions: dict[int, Generation] = {}
    while len(captions) < 3:
        outcome = batch.step()
        steps += outcome.steps
        captions |= outcome.captions
    for number in (0, 2):
        own = [event for one, event in steps if one == number]
        assert [event.step for event in own] == [*range(1, captions[number].steps + 1)]
        assert own[-1].canvas == captions[number].canvas
    assert {number for number, _ in steps} == {0, 2}


def test_a_dropped_job_takes_no_part_and_changes_nothing(runner: SamplerRunner) -> None:
    expected = ended(opened(runner, jobs(runner)), 3)
    batch = opened(runner, jobs(runner, watched=True))
    batch.step()
    batch.drop({0, 99})
    captions = ended(batch, 2)
    assert set(captions) == {1, 2}
    for number, caption in captions.items():
        assert caption.ids == expected[number].ids
        # A smaller batch multiplies in another order.
        assert caption.confidences == pytest.approx(expected[number].confidences, abs=1e-5)


def test_a_draft_that_needs_no_step_is_told_at_once(runner: SamplerRunner) -> None:
    ids = runner.encode("the street shows a brick")[:4]
    settings = SamplerSettings(canvas_length=len(ids), draft=ids, refine=False)
    prompt = runner.prepare(Image.new("RGB", (64, 64)), None)
    outcome = opened(runner, [Job(prompt, settings, lambda event: None)]).step()
    [caption] = outcome.captions.values()
    assert (caption.ids, caption.steps) == (ids, 0)


def test_work_is_counted(runner: SamplerRunner) -> None:
    batch = opened(runner, jobs(runner)[:2])
    outcome = batch.step()
    assert outcome.canvas_rows == 16 + 8
    # Four tokens a step, and one.
    assert (outcome.revealed, outcome.revised) == (5, 0)
    assert outcome.refreshed == frozenset()


def test_a_job_that_does_not_fit_the_model_changes_nothing(runner: SamplerRunner) -> None:
    batch = opened(runner, jobs(runner)[:1])
    prompt = runner.prepare(Image.new("RGB", (64, 64)), None)
    settings = SamplerSettings(canvas_length=16, draft=(9999,))
    with pytest.raises(SettingsError, match="9999"):
        batch.join({5: Job(prompt, settings, lambda event: None)})
    assert set(ended(batch, 1)) == {0}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("act", ["join", "step"])
def test_memory_that_runs_out_is_named_and_the_batch_goes_on(
    runner: SamplerRunner, monkeypatch: pytest.MonkeyPatch, act: str, device: str
) -> None:
    expected = ended(opened(runner, jobs(runner)), 3)
    batch = opened(runner, jobs(runner)[:2])

    def fail(*arguments: object) -> None:
        if device == "cpu":
            torch.empty(2**58)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(sampler, act, fail)
        with pytest.raises(OutOfMemory):
            batch.step() if act == "step" else batch.join({2: jobs(runner)[2]})
    batch.join({2: jobs(runner)[2]})
    assert {number: one.ids for number, one in ended(batch, 3).items()} == {
        number: one.ids for number, one in expected.items()
    }


def test_other_errors_keep_their_class(
    runner: SamplerRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("shapes differ")

    batch = opened(runner, jobs(runner))
    monkeypatch.setattr(sampler, "step", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        batch.step()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_break_the_request_alone(
    runner: SamplerRunner, bad: float
) -> None:
    started = jobs(runner, watched=True)
    expected = ended(opened(runner, started), 3)
    rows_PD = cast("torch.Tensor", started[1].prompt.rows).clone()
    rows_PD[3, 0] = bad
    started[1].prompt = replace(started[1].prompt, rows=rows_PD)
    batch = opened(runner, started)
    outcome = batch.step()
    assert outcome.broken == {1}
    assert {number for number, _ in outcome.steps} == {0, 2}
    batch.drop(outcome.broken)
    captions = ended(batch, 2)
    assert {number: one.ids for number, one in captions.items()} == {
        number: expected[number].ids for number in (0, 2)
    }


def test_the_same_picture_is_encoded_once(runner: SamplerRunner, checkpoint: Path) -> None:
    fresh = SamplerRunner.load(EngineConfig(str(checkpoint)))
    picture = Image.new("RGB", (64, 64), "red")
    first, again = fresh.prepare(picture, None), fresh.prepare(picture.copy(), "what is this")
    assert (first.cached, again.cached) == (False, True)
    assert not fresh.prepare(Image.new("RGB", (64, 64), "blue"), None).cached
    other = runner.prepare(picture, "what is this")
    assert torch.equal(cast("torch.Tensor", again.rows), cast("torch.Tensor", other.rows))


def test_no_bytes_for_features_keep_none(checkpoint: Path) -> None:
    fresh = SamplerRunner.load(EngineConfig(str(checkpoint), vision_cache_bytes=0))
    picture = Image.new("RGB", (64, 64), "red")
    assert not any(fresh.prepare(picture, None).cached for _ in range(2))


def test_prompt_rows_are_counted(runner: SamplerRunner) -> None:
    short = runner.prepare(Image.new("RGB", (64, 64)), "a")
    long = runner.prepare(Image.new("RGB", (64, 64)), "a a a a")
    assert short.image_tokens == long.image_tokens > 0
    assert long.prompt_tokens > short.prompt_tokens > short.image_tokens


def test_information_and_warm_up(runner: SamplerRunner) -> None:
    assert runner.info.canvas_length == 16
    assert (runner.info.mask_token_id, runner.info.stop_token_id) == (642, 645)
    assert (runner.info.device, runner.info.dtype) == ("cpu", "float32")
    # Keys and values of two layers of 32, in buffers that may be a quarter too large.
    assert runner.info.row_bytes == 2 * 2 * 32 * 4 * 5 // 4
    prompt = runner.prepare(Image.new("RGB", (64, 64)), None)
    assert runner.info.request_rows == prompt.prompt_tokens + 16
    assert runner.info.free_bytes is None or runner.info.free_bytes > 2**20
    runner.warm_up(3)


def test_what_was_asked_of_the_layers_is_told(checkpoint: Path) -> None:
    info = SamplerRunner.load(EngineConfig(str(checkpoint), compile=True, cuda_graphs=True)).info
    assert (info.compiled, info.cuda_graphs) == (True, torch.cuda.is_available())


def test_dtype_and_device_are_honoured(checkpoint: Path) -> None:
    assert SamplerRunner.load(EngineConfig(str(checkpoint), dtype="bfloat16")).info.dtype == (
        "bfloat16"
    )
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device cuda:1 is not available"):
            SamplerRunner.load(EngineConfig(str(checkpoint), device="cuda:1"))


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_a_gpu_without_units_for_bfloat16_gets_float16(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert model_runner.resolve_dtype("auto", torch.device("cuda", 1)) == dtype
    assert model_runner.resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert model_runner.resolve_dtype("bfloat16", torch.device("cuda", 1)) == torch.bfloat16


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_libraries_that_find_no_memory_are_out_of_memory(message: str) -> None:
    with pytest.raises(OutOfMemory), model_runner.memory_named():
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match=r"^device-side assert"), model_runner.memory_named():
        raise RuntimeError("device-side assert")

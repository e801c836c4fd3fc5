"""The runner on a real, tiny model: the sampler's captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import torch
from PIL import Image

from rediff_model import sampler
from rediff_model.generation import Generation, StepEvent
from rediff_model.model import Captioner
from rediff_model.settings import SamplerSettings
from server.engine.config import EngineConfig
from server.engine.request import Job
from server.engine.runner import SamplerRunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def captions_of(runner: SamplerRunner, jobs: list[Job]) -> dict[int, Generation]:
    batch, captions = runner.start(jobs), dict[int, Generation]()
    for _ in range(100):
        captions |= {i: event for i, event in batch.step() if isinstance(event, Generation)}
    return captions


def test_a_batch_gives_the_captions_of_the_sampler(runner: SamplerRunner, checkpoint: Path) -> None:
    captioner = Captioner.load(checkpoint)
    started = jobs(runner)
    expected = sampler.generate(
        captioner.model,
        [cast("torch.Tensor", job.prompt.rows) for job in started],
        SETTINGS,
        captioner.token_ids,
    )
    assert captions_of(runner, started) == dict(enumerate(expected))


def test_watched_jobs_tell_every_step_before_their_caption(runner: SamplerRunner) -> None:
    started = jobs(runner, watched=True)
    started[1].wants_steps = False
    batch, events = runner.start(started), list[tuple[int, StepEvent | Generation]]()
    for _ in range(100):
        events += batch.step()
    for index in (0, 2):
        own = [event for i, event in events if i == index]
        steps, caption = own[:-1], own[-1]
        assert isinstance(caption, Generation)
        assert [e.step for e in steps if isinstance(e, StepEvent)] == [*range(1, caption.steps + 1)]
        last = steps[-1]
        assert isinstance(last, StepEvent)
        assert last.canvas == caption.canvas
    assert len([event for i, event in events if i == 1]) == 1


def test_a_dropped_job_takes_no_part_and_changes_nothing(runner: SamplerRunner) -> None:
    expected = captions_of(runner, jobs(runner))
    batch = runner.start(jobs(runner, watched=True))
    captions = {i: event for i, event in batch.step() if isinstance(event, Generation)}
    batch.drop({0})
    for _ in range(100):
        for index, event in batch.step():
            assert index != 0
            if isinstance(event, Generation):
                captions[index] = event
    assert set(captions) == {1, 2}
    for index, caption in captions.items():
        assert caption.ids == expected[index].ids
        # A smaller batch multiplies in another order.
        assert caption.confidences == pytest.approx(expected[index].confidences, abs=1e-5)


def test_a_draft_that_needs_no_step_is_told_at_once(runner: SamplerRunner) -> None:
    ids = runner.encode("the street shows a brick")[:4]
    settings = SamplerSettings(canvas_length=len(ids), draft=ids, refine=False)
    prompt = runner.prepare(Image.new("RGB", (64, 64)), None)
    [(index, caption)] = runner.start([Job(prompt, settings, lambda event: None)]).step()
    assert index == 0
    assert isinstance(caption, Generation)
    assert (caption.ids, caption.steps) == (ids, 0)


def test_prompt_rows_are_counted(runner: SamplerRunner) -> None:
    short = runner.prepare(Image.new("RGB", (64, 64)), "a")
    long = runner.prepare(Image.new("RGB", (64, 64)), "a a a a")
    assert short.image_tokens == long.image_tokens > 0
    assert long.prompt_tokens > short.prompt_tokens > short.image_tokens


def test_information_and_warm_up(runner: SamplerRunner) -> None:
    assert runner.info.canvas_length == 16
    assert (runner.info.mask_token_id, runner.info.stop_token_id) == (642, 645)
    assert (runner.info.device, runner.info.dtype) == ("cpu", "float32")
    runner.warm_up(3)


def test_dtype_and_device_are_honoured(checkpoint: Path) -> None:
    assert SamplerRunner.load(EngineConfig(str(checkpoint), dtype="bfloat16")).info.dtype == (
        "bfloat16"
    )
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device cuda:1 is not available"):
            SamplerRunner.load(EngineConfig(str(checkpoint), device="cuda:1"))

"""The engine in this process: what it is given, and what it says when a request fails."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from bulk_case import NOT_READ, item, write_pictures
from engine_fakes import CountingRunner
from server_fakes import DEFAULT_CAPTION, FakeRunner

from server.bulk.item import BulkError, Captioned
from server.bulk.local import Local
from server.bulk.order import Order
from server.images.decode import ImageLimits
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from server.bulk.item import PictureError
    from server.engine.request import Job, Runner


@contextmanager
def opened(runner: Runner, prompt: str | None = None, **given: object) -> Iterator[Local]:
    settings = Settings.read({"model": "fake", "max_batch": 2})
    order = Order.read(settings, given, prompt)
    local = Local.open(lambda: runner, settings.engine(), order, ImageLimits(), 1)
    try:
        yield local
    finally:
        local.close()


def results(local: Local, paths: list[Path]) -> dict[int, Captioned | PictureError]:
    for number, path in enumerate(paths):
        local.submit(number, item(path))
    return dict(local.take() for _ in paths)


def test_pictures_are_captioned_and_broken_ones_told(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, [f"{name}.png" for name in "abcdef"])
    paths[2].write_bytes(b"no picture")
    runner = FakeRunner()
    with opened(runner, tokens_per_step=2) as local:
        found = results(local, paths)
    broken = found.pop(2)
    assert str(broken) == NOT_READ
    assert set(found.values()) == {Captioned(DEFAULT_CAPTION, 0.5, 1, 4, "stop")}
    assert sorted(found) == [0, 1, 3, 4, 5]
    assert {picture.getpixel((0, 0)) for picture in runner.pictures} == {
        (shade, shade, shade) for shade in (0, 1, 3, 4, 5)
    }


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("boom prepare", "it cannot be encoded: a secret path /root/secret"),
        ("boom start", "the caption could not be begun"),
        ("boom step", "the step that computed it failed twice"),
    ],
)
def test_what_a_picture_does_to_the_model_is_told(tmp_path: Path, prompt: str, reason: str) -> None:
    paths = write_pictures(tmp_path, ["a.png", "b.png"])
    with opened(FakeRunner(), prompt) as local:
        assert [str(result) for result in results(local, paths).values()] == [reason] * 2


def test_a_step_that_fails_once_costs_nobody(tmp_path: Path) -> None:
    runner = CountingRunner()
    failures = iter([True])

    def fail_once(jobs: Mapping[int, Job]) -> None:
        if next(failures, False):
            raise RuntimeError("a bad moment")

    runner.before_step = fail_once
    with opened(runner) as local:
        found = results(local, write_pictures(tmp_path, ["a.png", "b.png", "c.png"]))
    assert all(isinstance(result, Captioned) for result in found.values())


def test_the_end_of_the_engine_is_the_end_of_the_run(tmp_path: Path) -> None:
    runner = CountingRunner()

    def die(jobs: Mapping[int, Job]) -> None:
        raise SystemExit("out of luck")

    runner.before_step = die
    (path,) = write_pictures(tmp_path, ["a.png"])
    with opened(runner) as local:
        local.submit(0, item(path))
        with pytest.raises(BulkError, match="the engine ended"):
            local.take()


def test_a_model_that_cannot_be_used_is_told() -> None:
    def load() -> Runner:
        raise ValueError("no such checkpoint")

    settings = Settings.read({"model": "fake"})
    order = Order.read(settings, {}, None)
    with pytest.raises(BulkError, match="no such checkpoint"):
        Local.open(load, settings.engine(), order, ImageLimits(), 1)
    few = replace(order, prompt="a b c", max_prompt_tokens=2)
    with pytest.raises(BulkError, match="prompt has 3 tokens, the limit is 2"):
        Local.open(FakeRunner, settings.engine(), few, ImageLimits(), 1)


def test_more_new_tokens_than_the_canvas_are_as_many_as_it_has() -> None:
    settings = Settings.read({"model": "fake"})
    for asked, got in ((None, 8), (5, 5), (100, 8)):
        order = Order.read(settings, {"max_new_tokens": asked}, None)
        assert order.fit(FakeRunner()).settings.canvas_length == got
    with pytest.raises(BulkError, match="give one"):
        Order.read(settings, {"max_new_tokens": 4, "canvas_length": 4}, None)

"""`rediff caption` as a program of its own, to be killed; `fake` runs it without a model.

Imports little, because it is started often.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, cast
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"

from engine_fakes import CountingRunner

from rediff_model.sampling.outputs import Generation
from server.cli import main
from server.commands import caption
from server.engine.request import Outcome, Prepared

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from PIL import Image

    from rediff_model.chat_template import Question
    from server.engine.request import Batch, Job


LAST = 23
"""Shade of the picture that waits for the file which HOLD_LAST_UNTIL names."""


class SlowRunner(CountingRunner):
    """Says how bright a picture is. Takes a moment for it, so that a kill finds work under way."""

    def prepare(self, image: Image.Image, question: Question | None) -> Prepared:
        time.sleep(0.005)
        shade = cast("tuple[int, int, int]", image.getpixel((0, 0)))[0]
        until = os.environ.get("HOLD_LAST_UNTIL")
        while until and shade == LAST and not os.path.exists(until):
            time.sleep(0.01)
        return Prepared(shade, image_tokens=0, prompt_tokens=4)

    def decode(self, ids: tuple[int, ...]) -> str:
        return f"shade {ids[0]}"

    def open(self) -> Batch:  # type: ignore[override]
        return SlowBatch()


class SlowBatch:
    """Everybody is done after one step."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}

    def join(self, jobs: Mapping[int, Job]) -> None:
        self._jobs |= jobs

    def step(self) -> Outcome:
        time.sleep(0.02)
        captions = {}
        for number, job in self._jobs.items():
            shade = cast("int", job.prompt.rows)
            captions[number] = Generation((shade,), (shade,), 1, 0, (0.5,), (0,), 0, (1,), "stop")
        self._jobs.clear()
        return Outcome(captions=captions)

    def drop(self, numbers: Collection[int]) -> None:
        for number in numbers:
            self._jobs.pop(number, None)


if __name__ == "__main__":
    if sys.argv[1] == "fake":
        del sys.argv[1]
        with mock.patch.object(caption, "load_runner", return_value=SlowRunner()):
            main()
    main()

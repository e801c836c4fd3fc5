"""A server in a process of its own, and the memory it takes."""

from __future__ import annotations

import asyncio
import math
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_REDIFF = (sys.executable, "-c", "from server.cli import main; main()", "serve", "--port", "0")
_SAMPLE_SECONDS = 0.25


class CannotStart(RuntimeError):
    """The server did not become ready; the message is the end of its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server listens; its process, if it was started here."""

    address: str
    pid: int | None = None


@contextmanager
def started(options: Sequence[str]) -> Iterator[Server]:
    """`rediff serve` with these options on a free loopback port, stopped at the end.

    Raises:
        CannotStart: it ended before it was ready.
    """
    with subprocess.Popen(
        [*_REDIFF, "--log-level", "info", *options],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            log: list[str] = []
            for line in process.stderr:
                log.append(line)
                if match := re.search(r"is ready at (http://\S+)", line):
                    break
            else:
                raise CannotStart("".join(log[-5:]).strip() or "the server said nothing")
            # A log that nobody reads fills its pipe, and the server stands still.
            reader = threading.Thread(target=process.stderr.read, daemon=True)
            reader.start()
            yield Server(match[1], process.pid)
        finally:
            process.kill()
            process.wait()


def cpu_seconds(pid: int | None) -> float:
    """Processor time of a process and all its threads so far; NaN where it cannot be read."""
    if pid is None or sys.platform != "linux":
        return math.nan
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Memory:
    """Resident bytes of a process while a `with` block runs, four times a second."""

    pid: int | None
    """None: nothing is read."""
    samples: list[int] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self.pid is not None and sys.platform == "linux":
            self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()

    def to_json(self) -> dict[str, float] | None:
        """Peak and the growth from the second quarter to the last one, in megabytes."""
        count = len(self.samples)
        if count < 4:
            return None
        quarter = count // 4
        early, late = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        return {
            "peak": max(self.samples) / 1e6,
            "growth": (sum(late) - sum(early)) / quarter / 1e6,
        }

    async def _watch(self) -> None:
        while True:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])  # noqa: ASYNC240
            self.samples.append(pages * os.sysconf("SC_PAGE_SIZE"))
            await asyncio.sleep(_SAMPLE_SECONDS)

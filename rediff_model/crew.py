"""Threads that each run a part of a step on a CPU, with one thread of torch's own in each.

Torch splits single operations over its threads and waits for the slowest after each; a step's
operations are short, so most of a second core is lost in waiting. Parts of a step that need
nothing of each other wait once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Job = TypeVar("Job")
Result = TypeVar("Result")


def spread(work: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    """`work` of every job, in inference mode, on as many threads as torch has; results in order.

    When it returns or raises, nothing runs any more. With one job or one thread, it is run here,
    with all of torch's threads.
    """
    threads = torch.get_num_threads()
    if len(jobs) < 2 or threads < 2:
        return [work(job) for job in jobs]

    def without_gradients(job: Job) -> Result:
        with torch.inference_mode():
            return work(job)

    futures = [_crew(threads).submit(without_gradients, job) for job in jobs]
    wait(futures)
    return [future.result() for future in futures]


@cache
def _crew(threads: int) -> ThreadPoolExecutor:
    """Threads with one thread of torch's each, made at the first use of so many."""
    crew = ThreadPoolExecutor(threads, thread_name_prefix="rediff-step")
    barrier = Barrier(threads)

    def settle(_: int) -> None:
        # The first question makes torch take over the process's number; a later one would undo
        # what is set here.
        torch.get_num_threads()
        torch.set_num_threads(1)
        barrier.wait()

    list(crew.map(settle, range(threads)))
    # Of this thread and of those to come: what was set above is also the process's number.
    torch.set_num_threads(threads)
    return crew

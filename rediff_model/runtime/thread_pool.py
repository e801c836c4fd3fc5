"""Threads that each run a part of a step on a CPU, with one thread of torch's own in each.

Torch splits single operations over its threads and waits for the slowest after each; a step's
operations are short, so most of a second core is lost in waiting. Parts of a step that need
nothing of each other wait once.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Barrier, Lock
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

Job = TypeVar("Job")
Result = TypeVar("Result")

_crews: dict[int, ThreadPoolExecutor | None] = {}
"""By number of threads; None where they could not be started."""
_making = Lock()


def spread(
    work: Callable[[Job], Result], jobs: Sequence[Job], *, short: bool = False
) -> list[Result]:
    """`work` of every job, in inference mode, on as many threads as torch has; results in order.

    When it returns or raises, nothing of it runs any more. With fewer jobs than threads, or one
    thread, they are run here, one after the other, with all of torch's threads. With `short`, for
    jobs whose operations are not worth sharing, fewer jobs leave threads idle instead.
    """
    threads = torch.get_num_threads()
    crew = _crew(threads) if threads > 1 and (short or len(jobs) >= threads) else None
    if crew is None:
        return [work(job) for job in jobs]

    def without_gradients(job: Job) -> Result:
        with torch.inference_mode():
            return work(job)

    futures: list[Future[Result]] = []
    try:
        for job in jobs:
            try:
                futures.append(crew.submit(without_gradients, job))
            except RuntimeError:
                # The interpreter is ending and takes no more; the caller may still want to finish.
                futures.append(_done(work(job)))
        wait(futures)
        results = []
        while futures:
            # Nothing here may name the future: an exception holds this frame, and a future its
            # exception, and nobody would free what the other jobs made before the next garbage
            # collection.
            results.append(futures.pop(0).result())
        return results
    except BaseException:
        _stop(futures)
        raise


def _stop(futures: list[Future[Result]]) -> None:
    """Begin nothing more, wait for what runs, and forget all of it."""
    for future in futures:
        future.cancel()
    wait(futures)
    futures.clear()


def prepare() -> None:
    """Make the threads that `spread` will use, so that no step has to."""
    threads = torch.get_num_threads()
    if threads > 1:
        _crew(threads)


def _crew(threads: int) -> ThreadPoolExecutor | None:
    """Threads with one thread of torch's each, made at the first use of so many."""
    with _making:
        if threads not in _crews:
            _crews[threads] = _made(threads)
        return _crews[threads]


def _made(threads: int) -> ThreadPoolExecutor | None:
    crew = ThreadPoolExecutor(threads, thread_name_prefix="rediff-step")
    barrier = Barrier(threads)

    def settle() -> None:
        # The first question makes torch take over the process's number; a later one would undo
        # what is set here.
        torch.get_num_threads()
        torch.set_num_threads(1)
        barrier.wait()

    try:
        for future in [crew.submit(settle) for _ in range(threads)]:
            future.result()
    except RuntimeError as error:
        # BrokenBarrierError is one, and so is what comes when there can be no more threads.
        barrier.abort()
        crew.shutdown(wait=False)
        logger.warning("steps run on one thread of Python: %s", error)
        return None
    finally:
        # What was set above is also the number of threads of the process that are still to come.
        torch.set_num_threads(threads)
    return crew


def _done(result: Result) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_result(result)
    return future

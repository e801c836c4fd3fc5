"""Makes things in a thread before they are asked for."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

J = TypeVar("J")
T = TypeVar("T")


def ahead(make: Callable[[J], T], jobs: Iterable[J], depth: int) -> Iterator[T]:
    """`make` of each job in order, up to `depth` of them made ahead in one thread; 0 makes each
    when it is asked for. What `make` raises comes where its result would have come."""
    if not depth:
        yield from map(make, jobs)
        return
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(make, job))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

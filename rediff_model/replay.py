"""CUDA graphs: what a step launches, recorded once a layout of the batch and replayed.

A step of a large model launches hundreds of kernels from Python; while one request runs, that takes
longer than the kernels do. As long as nobody joins or leaves, a step launches the same kernels on
the same memory, so the second one is recorded and those after it only read new ids.

Shape suffixes: S sequences, C canvas rows, D hidden size.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

logger = logging.getLogger(__name__)


def replays(device: torch.device) -> bool:
    """Whether work on a device can be recorded."""
    return device.type == "cuda"


def record(run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Record what `run` launches: its result, which is filled at each call of what is returned.

    Raises RuntimeError if it does what a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads, which encode pictures, go on as they like meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()
    return result, graph.replay


class Recording:
    """A function of canvases for one layout of a batch: run at first, then recorded, then replayed.

    The first call settles what kernels need; it may not be recorded.
    """

    def __init__(self) -> None:
        self._settled = False
        self._refused = False
        self._ids_SC: Tensor | None = None
        self._hidden_SCD: Tensor | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, ids_SC: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """`run(ids_SC)`, [S, C, D], valid until the next call. `run` must be the same each time."""
        if not self._settled or self._refused:
            self._settled = True
            return run(ids_SC)
        if self._replay is None:
            own_SC = ids_SC.clone()
            try:
                self._hidden_SCD, self._replay = record(lambda: run(own_SC))
            except RuntimeError as error:
                logger.warning("a step cannot be recorded, so it is launched anew: %s", error)
                self._refused = True
                return run(ids_SC)
            self._ids_SC = own_SC
        assert self._ids_SC is not None
        assert self._hidden_SCD is not None
        self._ids_SC.copy_(ids_SC)
        self._replay()
        return self._hidden_SCD

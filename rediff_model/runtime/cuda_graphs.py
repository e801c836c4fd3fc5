"""CUDA graphs: what a step launches, recorded once a layout of the batch and replayed.

A step of a large model launches hundreds of kernels from Python; while one request runs, that takes
longer than the kernels do. As long as nobody joins or leaves, a step launches the same kernels on
the same memory, so the second one is recorded and those after it only read new ids.

Shape suffixes: S sequences, C canvas rows, D hidden size.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

logger = logging.getLogger(__name__)

_capturing = Lock()
"""Torch allows one capture in a process at a time."""


def replays(device: torch.device) -> bool:
    """Whether work on a device can be recorded."""
    return device.type == "cuda"


def record(run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], None]]:
    """Record what `run` launches: its result, which is filled at each call of what is returned.

    Raises RuntimeError if it does what a graph cannot hold; the current stream is as before then.
    """
    with _capturing, torch.cuda.device(device):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            # Other threads, which encode pictures, go on as they like meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                result = run()
            except BaseException:
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
    return result, graph.replay


class Recorder:
    """Makes the recordings of all layouts of a batch, and gives up at the first that fails."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.refused = False

    def record(self, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]] | None:
        """As `record`; None if it does not work."""
        if self.refused:
            return None
        try:
            return record(run, self._device)
        except RuntimeError as error:
            reason = error.__context__ or error
            logger.warning("steps cannot be recorded, so they are launched anew: %s", reason)
            self.refused = True
            return None


class Recording:
    """A function of canvases for one layout of a batch: run at first, then recorded, then replayed.

    The first call settles what kernels need; it may not be recorded.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._settled = False
        self._ids_SC: Tensor | None = None
        self._hidden_SCD: Tensor | None = None
        self._replay: Callable[[], None] | None = None

    @property
    def recorded(self) -> bool:
        """Whether calls are replayed by now."""
        return self._replay is not None

    def __call__(self, ids_SC: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """`run(ids_SC)`, [S, C, D], valid until the next call. `run` must be the same each time."""
        if self._replay is None:
            made = None
            own_SC = ids_SC.clone()
            if self._settled:
                made = self.recorder.record(lambda: run(own_SC))
            self._settled = True
            if made is None:
                return run(ids_SC)
            self._ids_SC = own_SC
            self._hidden_SCD, self._replay = made
        assert self._ids_SC is not None
        assert self._hidden_SCD is not None
        self._ids_SC.copy_(ids_SC)
        self._replay()
        return self._hidden_SCD

"""Random numbers for temperature and random remasking, by request, step and position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from kernels import ops

if TYPE_CHECKING:
    from torch import Tensor


class Noise(Protocol):
    """Uniform numbers in [0, 1). Steps and positions count from 0; T rows, V vocabulary."""

    def tokens(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor, columns: int) -> Tensor:
        """One number for each id at each row, [T, V], float64."""
        ...

    def keys(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor) -> Tensor | None:
        """The rows' keys, int64 [T], if `tokens` are what `kernels.noise` makes of such; else None.

        With keys the numbers need not be in memory.
        """
        ...

    def order(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor) -> Tensor:
        """One number a row, [T]: what random remasking ranks by."""
        ...


class CounterNoise:
    """Numbers that depend on seed, step, position and id only, not on the batch."""

    def tokens(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor, columns: int) -> Tensor:
        return ops.numbers(self.keys(seed_T, step_T, position_T), columns)

    def keys(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor) -> Tensor:
        return _key(seed_T, step_T, position_T, stream=0)

    def order(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor) -> Tensor:
        return ops.uniform(_key(seed_T, step_T, position_T, stream=1))


def _key(seed_T: Tensor, step_T: Tensor, position_T: Tensor, stream: int) -> Tensor:
    stream_T = torch.full_like(seed_T, stream)
    return ops.derive(ops.derive(ops.derive(seed_T, stream_T), step_T), position_T)

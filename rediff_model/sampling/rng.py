"""Random numbers for temperature and random remasking, by request, step and position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kernels import ops

if TYPE_CHECKING:
    from torch import Tensor


class Noise(Protocol):
    """Uniform numbers in [0, 1). Steps and positions count from 0; T rows, V vocabulary."""

    def tokens(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor, columns: int) -> Tensor:
        """One number for each id at each row, [T, V], float64."""
        ...

    def keys(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor) -> Tensor | None:
        """The rows' keys, int64 [T, 2], if `tokens` are `ops.numbers` of such; else None.

        With keys the numbers need not be in memory.
        """
        ...

    def order(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor) -> Tensor:
        """One number a row, [T]: what random remasking ranks by."""
        ...


class CounterNoise:
    """Philox keyed by the seed: numbers that depend on seed, step, position and id only."""

    def tokens(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor, columns: int) -> Tensor:
        return ops.numbers(self.keys(seed_T, step_T, position_T), columns)

    def keys(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor) -> Tensor:
        return ops.row_keys(seed_T, step_T, position_T)

    def order(self, seed_T: Tensor, step_T: Tensor, position_T: Tensor) -> Tensor:
        return ops.numbers(self.keys(seed_T, step_T, position_T), 1, stream=1)[:, 0]

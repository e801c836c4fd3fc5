"""Counter-based uniform numbers: the same for a seed, step and position in any batch.

The mixing function is the finaliser of splitmix64 (Steele, Lea and Flood 2014), in int64
arithmetic that wraps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def derive(key: Tensor, counter: Tensor) -> Tensor:
    """A new int64 key from a key and a counter from 0; shapes broadcast."""
    mixed = key + (counter + 1) * GAMMA
    mixed = (mixed ^ _shift(mixed, 30)) * _FIRST
    mixed = (mixed ^ _shift(mixed, 27)) * _SECOND
    return mixed ^ _shift(mixed, 31)


def numbers(key_T: Tensor, columns: int) -> Tensor:
    """The uniform numbers of `columns` ids at rows with these keys, float64 [T, columns]."""
    ids_V = torch.arange(columns, device=key_T.device)
    return uniform(derive(key_T[:, None], ids_V))


def uniform(key: Tensor) -> Tensor:
    """Float64 in [0, 1) from the upper 53 bits of a key."""
    return _shift(key, 11).to(torch.float64) * 2.0**-53


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right without carrying the sign along."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)

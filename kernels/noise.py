"""Counter-based uniform numbers: the same for a seed, step and position in any batch.

What a request draws comes from Philox4x32 with ten rounds (Salmon and others 2011), keyed by its
seed. `derive` mixes single keys: the finaliser of splitmix64 (Steele, Lea and Flood 2014). Both in
int64 arithmetic that wraps.

Shape suffixes: T rows.
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

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def derive(key: Tensor, counter: Tensor) -> Tensor:
    """A new int64 key from a key and a counter from 0; shapes broadcast."""
    mixed = key + (counter + 1) * GAMMA
    mixed = (mixed ^ _shift(mixed, 30)) * _FIRST
    mixed = (mixed ^ _shift(mixed, 27)) * _SECOND
    return mixed ^ _shift(mixed, 31)


def row_keys(seed_T: Tensor, step_T: Tensor, position_T: Tensor) -> Tensor:
    """What the numbers of a row follow from, int64 [T, 2]: its seed, and its step and position.

    Steps are below 2^31, positions below 2^32.
    """
    return torch.stack((seed_T, (step_T << 32) | position_T), dim=1)


def numbers(key_T2: Tensor, columns: int, stream: int = 0) -> Tensor:
    """The uniform numbers of `columns` ids at rows with these keys, float64 [T, columns].

    One call of Philox gives those of two ids: its counter is half the id, the row's position, its
    step and the stream.
    """
    seed_T1, place_T1 = key_T2[:, :1], key_T2[:, 1:]
    pair_P = torch.arange((columns + 1) // 2, device=key_T2.device)
    counter = (
        pair_P[None],
        place_T1 & _WORD,
        _shift(place_T1, 32),
        torch.full_like(seed_T1, stream),
    )
    first, second, third, fourth = philox((seed_T1 & _WORD, _shift(seed_T1, 32)), counter)
    pairs_TP2 = torch.stack((_joined(first, second), _joined(third, fourth)), dim=2)
    return pairs_TP2.flatten(1)[:, :columns]


def philox(key: tuple[Tensor, Tensor], counter: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Four random words for a counter of four and a key of two, all of 32 bits in int64.

    Shapes broadcast.
    """
    left, right = key
    one, two, three, four = counter
    for _ in range(10):
        low, high = one * _MULTIPLIERS[0], three * _MULTIPLIERS[1]
        one, two = _shift(high, 32) ^ two ^ left, high & _WORD
        three, four = _shift(low, 32) ^ four ^ right, low & _WORD
        left, right = (left + _WEYL[0]) & _WORD, (right + _WEYL[1]) & _WORD
    return one, two, three, four


def _joined(high: Tensor, low: Tensor) -> Tensor:
    """Float64 in [0, 1) from a word and the upper 21 bits of another."""
    return ((high << 21) | (low >> 11)).to(torch.float64) * 2.0**-53


def uniform(key: Tensor) -> Tensor:
    """Float64 in [0, 1) from the upper 53 bits of a key."""
    return _shift(key, 11).to(torch.float64) * 2.0**-53


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right without carrying the sign along."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)

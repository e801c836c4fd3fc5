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

PAIRS_IN_CACHE = 1 << 15
"""Pairs of ids at a time on a CPU."""


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
    pair_P = torch.arange((columns + 1) // 2, device=key_T2.device)
    rows = len(key_T2)
    if key_T2.device.type == "cpu":
        # What the rounds work on stays in the processor's cache.
        rows = max(1, PAIRS_IN_CACHE // max(1, len(pair_P)))
    pieces = [_numbers(part, pair_P, stream) for part in torch.split(key_T2, max(1, rows))]
    return torch.cat(pieces)[:, :columns]


def _numbers(key_T2: Tensor, pair_P: Tensor, stream: int) -> Tensor:
    """Two numbers a pair of ids, [T, 2 P]."""
    seed_T1, place_T1 = key_T2[:, :1], key_T2[:, 1:]
    stream_T1 = torch.full_like(seed_T1, stream)
    counter = (pair_P[None], place_T1 & _WORD, _shift(place_T1, 32), stream_T1)
    first, second, third, fourth = philox((seed_T1 & _WORD, _shift(seed_T1, 32)), counter)
    return torch.stack((_joined(first, second), _joined(third, fourth)), dim=2).flatten(1)


def philox(key: tuple[Tensor, Tensor], counter: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Four random words for a counter of four and a key of two, all of 32 bits in int64.

    Shapes broadcast.
    """
    left, right = key
    nothing = torch.zeros_like(left ^ right ^ counter[0] ^ counter[1] ^ counter[2] ^ counter[3])
    one, two, three, four = (word + nothing for word in counter)
    low, high = torch.empty_like(one), torch.empty_like(one)
    for _ in range(10):
        torch.mul(one, _MULTIPLIERS[0], out=low)
        torch.mul(three, _MULTIPLIERS[1], out=high)
        # The second and fourth word keep bits above their 32 until the end: these are cut off here.
        one = torch.bitwise_right_shift(high, 32, out=one)
        one.bitwise_xor_(two).bitwise_xor_(left).bitwise_and_(_WORD)
        three = torch.bitwise_right_shift(low, 32, out=three)
        three.bitwise_xor_(four).bitwise_xor_(right).bitwise_and_(_WORD)
        two, high = high, two
        four, low = low, four
        left, right = (left + _WEYL[0]) & _WORD, (right + _WEYL[1]) & _WORD
    return one, two.bitwise_and_(_WORD), three, four.bitwise_and_(_WORD)


def _joined(high: Tensor, low: Tensor) -> Tensor:
    """Float64 in [0, 1) from a word and the upper 21 bits of another."""
    return ((high << 21) | (low >> 11)).to(torch.float64) * 2.0**-53


def uniform(key: Tensor) -> Tensor:
    """Float64 in [0, 1) from the upper 53 bits of a key."""
    return _shift(key, 11).to(torch.float64) * 2.0**-53


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right without carrying the sign along."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)

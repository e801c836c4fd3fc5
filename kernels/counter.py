"""The counter-based numbers of `noise.py` inside Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels import noise

GAMMA = tl.constexpr(noise.GAMMA)
FIRST = tl.constexpr(noise._FIRST)
SECOND = tl.constexpr(noise._SECOND)


@triton.jit  # type: ignore[untyped-decorator]
def derive(key: tl.tensor, counter: tl.tensor) -> tl.tensor:
    """`noise.derive` for int64 keys and counters."""
    mixed = key + (counter + 1) * GAMMA
    mixed = (mixed ^ _shift(mixed, 30)) * FIRST
    mixed = (mixed ^ _shift(mixed, 27)) * SECOND
    return mixed ^ _shift(mixed, 31)


@triton.jit  # type: ignore[untyped-decorator]
def gumbel(seed: tl.tensor, place: tl.tensor, pairs: tl.tensor) -> tl.tensor:
    """-log(-log(u)) in float64 for the ids 2 p and 2 p + 1 of all pairs p, in this order.

    u as in `noise.numbers`. Seed and place are int64 and broadcast with the pairs, which are
    int32; the last dimension of the result is twice as long.
    """
    zero = pairs * 0
    position = place.to(tl.int32) + zero
    step = (place >> 32).to(tl.int32) + zero
    first, second, third, fourth = tl.philox(seed, pairs, position, step, zero)
    uniform = tl.interleave(_joined(first, second), _joined(third, fourth))
    return -tl.log(-tl.log(uniform))


@triton.jit  # type: ignore[untyped-decorator]
def _joined(high: tl.tensor, low: tl.tensor) -> tl.tensor:
    """`noise._joined`."""
    bits = (high.to(tl.uint64) << 21) | (low.to(tl.uint64) >> 11)
    return bits.to(tl.float64) * (2.0**-53)


@triton.jit  # type: ignore[untyped-decorator]
def _shift(value: tl.tensor, bits: tl.constexpr) -> tl.tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)

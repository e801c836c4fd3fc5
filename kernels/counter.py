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
def gumbel(key: tl.tensor, counter: tl.tensor) -> tl.tensor:
    """-log(-log(u)) in float64, u from `noise.uniform` of the derived key."""
    uniform = _shift(derive(key, counter), 11).to(tl.float64) * (2.0**-53)
    return -tl.log(-tl.log(uniform))


@triton.jit  # type: ignore[untyped-decorator]
def _shift(value: tl.tensor, bits: tl.constexpr) -> tl.tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)

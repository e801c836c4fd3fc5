"""The counter-based numbers."""

from __future__ import annotations

import numpy as np
import torch

from kernels import noise


def splitmix(key: int, counter: int) -> int:
    """One number of splitmix64 in Python integers."""
    wide = (1 << 64) - 1
    mixed = (key + (counter + 1) * 0x9E3779B97F4A7C15) & wide
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & wide
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & wide
    return mixed ^ (mixed >> 31)


def test_derive_is_splitmix64() -> None:
    keys = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])
    counters = torch.tensor([0, 1, 2, 126463, 2**40])
    got = noise.derive(keys, counters).numpy().view(np.uint64).tolist()
    want = [
        splitmix(key % 2**64, counter)
        for key, counter in zip(keys.tolist(), counters.tolist(), strict=True)
    ]
    assert got == want


def test_uniform_uses_the_upper_53_bits() -> None:
    keys = torch.tensor([0, 2**11 - 1, 2**11, -1])
    assert noise.uniform(keys).tolist() == [0.0, 0.0, 2.0**-53, 1 - 2.0**-53]


def test_numbers_are_spread_evenly() -> None:
    numbers = noise.uniform(noise.derive(torch.tensor(7), torch.arange(100_000)))
    counts = torch.histc(numbers, bins=20, min=0, max=1)
    assert (counts - 5000).abs().max() < 5 * 5000**0.5

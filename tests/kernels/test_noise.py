"""The counter-based numbers."""

from __future__ import annotations

import numpy as np
import pytest
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


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    """Known answers of Random123 for ten rounds."""
    left, right = map(torch.tensor, key)
    got = noise.philox((left, right), tuple(map(torch.tensor, counter)))
    assert tuple(map(int, got)) == words


def test_numbers_follow_from_seed_step_position_and_id_alone() -> None:
    seed_T, step_T, position_T = torch.tensor([[3, 3, 3, -(2**40)], [0, 1, 0, 0], [5, 5, 6, 5]])
    keys_T2 = noise.row_keys(seed_T, step_T, position_T)
    drawn = noise.numbers(keys_T2, 9)
    assert drawn.shape == (4, 9)
    assert torch.equal(drawn[1:3], noise.numbers(keys_T2[1:3], 9))
    assert torch.equal(drawn[:, :4], noise.numbers(keys_T2, 4))
    everything = torch.cat((drawn, noise.numbers(keys_T2, 9, stream=1))).flatten().tolist()
    # The second row has the step of no other, the third the position, the fourth the seed.
    assert len(set(everything)) == len(everything)


def test_a_number_takes_53_bits_of_two_words() -> None:
    one = noise.numbers(noise.row_keys(*torch.zeros(3, 1, dtype=torch.int64)), 2)
    first = ((0x6627E8D5 << 21) | (0xE169C58D >> 11)) / 2**53
    second = ((0xBC57AC4C << 21) | (0x9B00DBD8 >> 11)) / 2**53
    assert one.tolist() == [[first, second]]


def test_the_numbers_of_many_rows_are_spread_evenly() -> None:
    seed_T = torch.arange(1000)
    drawn = noise.numbers(noise.row_keys(seed_T, seed_T % 7, seed_T % 64), 101)
    counts = torch.histc(drawn, bins=20, min=0, max=1)
    assert (counts - 5050).abs().max() < 5 * 5050**0.5
    assert abs(torch.corrcoef(drawn[:, :2].T)[0, 1]) < 0.15

"""The random numbers of the training loss, as tensors that can be replayed.

A draw depends on a seed, the sample's key and the row within the sample only: not on the batch it
falls into, its padding, the number of processes or the device. So a resumed run repeats itself
and two processes draw what one would.

Shape suffixes: B samples, L rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from kernels import ops

Stream = Literal["rate", "mask", "replace", "ids", "kind", "other"]
STREAMS: tuple[Stream, ...] = get_args(Stream)
"""What a number is for; the order is part of the recipe."""

_KEY = 0x7261696E
"""Keeps training apart from the sampler's numbers of the same seed."""


@dataclass(frozen=True, slots=True)
class Draws:
    """All that `losses.noise` needs from chance."""

    rate_B: Tensor
    """t of each sample, uniform on [0, 1)."""
    mask_BL: Tensor
    """A row is masked where this lies below the sample's masking rate."""
    replace_BL: Tensor
    """An unmasked row is replaced where this lies below the replacement rate."""
    ids_BL: Tensor
    """The id a replaced row gets."""


def draw(keys_B: Tensor, length: int, seed: int, random_ids: tuple[int, int]) -> Draws:
    """Uniform draws for a batch; replacement ids from the half-open range `random_ids`.

    `keys_B` tells samples apart, such as their number in the whole run. `corruption` offers
    other replacement ids.

    Raises:
        ValueError: an empty range.
    """
    return Draws(
        rate_B=uniform(keys_B, 1, seed, "rate")[:, 0],
        mask_BL=uniform(keys_B, length, seed, "mask"),
        replace_BL=uniform(keys_B, length, seed, "replace"),
        ids_BL=random_tokens(keys_B, length, seed, random_ids),
    )


def random_tokens(
    keys_B: Tensor, length: int, seed: int, random_ids: tuple[int, int], stream: Stream = "ids"
) -> Tensor:
    """[B, L] ids, uniform on the half-open range `random_ids`."""
    low, high = random_ids
    if not 0 <= low < high:
        raise ValueError(f"random_ids must be a range of ids, got [{low}, {high})")
    return low + (_fractions(keys_B, length, seed, stream) * (high - low)).long()


def uniform(keys_B: Tensor, length: int, seed: int, stream: Stream) -> Tensor:
    """[B, L] float32 on [0, 1), a hash of seed, stream, key and row."""
    # Rounded down to the 24 bits that float32 holds, or else 1 itself could come out.
    return (_fractions(keys_B, length, seed, stream) * 2**24).floor().float() * 2.0**-24


def _fractions(keys_B: Tensor, length: int, seed: int, stream: Stream) -> Tensor:
    def number(value: int) -> Tensor:
        return torch.tensor(value, device=keys_B.device)

    stream_key = ops.derive(ops.derive(number(_KEY), number(seed)), number(STREAMS.index(stream)))
    keys_B1 = ops.derive(stream_key, keys_B.long())[:, None]
    return ops.uniform(ops.derive(keys_B1, torch.arange(length, device=keys_B.device)))

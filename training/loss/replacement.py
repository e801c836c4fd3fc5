"""Wrong tokens for Stage I: what stands in for a token that `losses.noise` replaces.

Shape suffixes: B samples, L rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from training.loss.random_draws import random_tokens, uniform

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the kinds of replacement; they need not sum to 1.

    The defaults are those of the paper: any token. For captions from templates
    `Mix(random=7, other=5, previous=3)` mimics what drafting many tokens a step gets wrong.
    """

    random: float = 1.0
    """Any token."""
    other: float = 0.0
    """The token at the same row of another caption: two wordings mixed up."""
    previous: float = 0.0
    """The token of the row before: a stutter."""

    def __post_init__(self) -> None:
        shares = (self.random, self.other, self.previous)
        if min(shares) < 0 or not sum(shares) > 0:
            raise ValueError(f"a mix needs shares from 0, not all 0, got {shares}")


def replacements(
    ids_BL: Tensor,
    others_BL: Tensor,
    keys_B: Tensor,
    seed: int,
    mix: Mix,
    random_ids: tuple[int, int],
) -> Tensor:
    """[B, L] ids for `Draws.ids_BL`.

    `others_BL` holds another caption of the same picture (or any), its rows beside those of
    `ids_BL`. Where the other caption or the row before holds no token (a negative id), the
    replacement is a random one. Draws are independent of the batch, as in `draws`.

    Raises:
        ValueError: shapes differ, or the range is empty.
    """
    if ids_BL.shape != others_BL.shape:
        raise ValueError(
            f"the other captions are {tuple(others_BL.shape)}, the ids {tuple(ids_BL.shape)}"
        )
    length = ids_BL.shape[1]
    random_BL = random_tokens(keys_B, length, seed, random_ids)
    previous_BL = torch.cat((torch.full_like(ids_BL[:, :1], -1), ids_BL[:, :-1]), dim=1)
    kind_BL = uniform(keys_B, length, seed, "kind") * (mix.random + mix.other + mix.previous)
    chosen_BL = torch.where(kind_BL < mix.other, others_BL.long(), random_BL)
    is_previous_BL = (kind_BL >= mix.other) & (kind_BL < mix.other + mix.previous)
    chosen_BL = torch.where(is_previous_BL, previous_BL.long(), chosen_BL)
    return torch.where(chosen_BL < 0, random_BL, chosen_BL)

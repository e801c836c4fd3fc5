"""On-policy self-correction: a canvas whose masks the model has filled itself, and what its
positions count in the loss.

One pass without gradient predicts the masked tokens; the surest of them are written into the
canvas, right or wrong, and the loss is on every position: what is still masked, what was filled in
wrongly, and what is right and has to stay (ProSeCo, arXiv 2602.11590; DMax, NeurIPS 2026).

Shape suffixes: N canvases, C canvas positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class OnPolicy:
    """What filled positions count, and the entropy term; a masked position counts 1."""

    wrong_weight: float = 2.0
    """Of a position that was filled with another token than its target."""
    right_weight: float = 0.3
    """Of a visible position that is right, filled in or given."""
    entropy_weight: float = 0.5
    """Of the entropy at masked positions that are predicted right already (dParallel): it makes
    the model sure of what it knows, so that more tokens pass a confidence threshold at once."""
    entropy_temperature: float = 0.5


def fill_masks(
    inputs_NC: Tensor, logits_NCV: Tensor, mask_id: int, share_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Canvases with the surest `share_N` of their masks filled, and which positions [N, C] were.

    A position's confidence is the probability of its likeliest token. `share_N` lies in 0 to 1 and
    is rounded to whole positions; 1 fills every mask. Tokens that must not be written have logits
    of minus infinity.
    """
    masked_NC = inputs_NC == mask_id
    confidence_NC, likeliest_NC = logits_NCV.float().softmax(-1).max(-1)
    sure_NC = confidence_NC.masked_fill(~masked_NC, -1.0)
    order_NC = sure_NC.argsort(dim=-1, descending=True, stable=True)
    rank_NC = order_NC.argsort(dim=-1)
    count_N = (share_N.clamp(0, 1) * masked_NC.sum(-1)).round()
    filled_NC = masked_NC & (rank_NC < count_N[:, None])
    return torch.where(filled_NC, likeliest_NC, inputs_NC), filled_NC


def fill_factors(right_NC: Tensor, filled_NC: Tensor, weights: OnPolicy) -> Tensor:
    """What the weight of a masked position is multiplied by once it is filled; 1 elsewhere."""
    by_kind_NC = torch.where(right_NC, weights.right_weight, weights.wrong_weight)
    return torch.where(filled_NC, by_kind_NC, torch.ones_like(by_kind_NC))


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """Entropy in nats of the distributions [..., V] at a temperature above 0."""
    log_share = (logits.float() / temperature).log_softmax(-1)
    return -(log_share.exp() * log_share).sum(-1)

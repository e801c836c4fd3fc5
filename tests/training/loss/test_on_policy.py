"""Canvases that the model fills itself: which masks, and what they count."""

import math

import pytest
import torch

from training.loss.on_policy import OnPolicy, entropy, fill_factors, fill_masks

MASK = 0


def logits(*confidence: float) -> torch.Tensor:
    """One canvas, of which position i predicts token 1 + i, as sure as given."""
    vocabulary = len(confidence) + 1
    result = torch.zeros(1, len(confidence), vocabulary)
    for place, share in enumerate(confidence):
        rest = (1 - share) / (vocabulary - 1)
        result[0, place] = math.log(rest)
        result[0, place, 1 + place] = math.log(share)
    return result


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (1.0, [1, 2, 9, 4]),
        (0.67, [MASK, 2, 9, 4]),
        (0.34, [MASK, 2, 9, MASK]),
        (0.1, [MASK, MASK, 9, MASK]),
    ],
)
def test_the_surest_masks_are_filled_and_nothing_else(share: float, expected: list[int]) -> None:
    """The visible token 9 is not the likeliest one, which is sure, and stays."""
    inputs = torch.tensor([[MASK, MASK, 9, MASK]])
    sure = logits(0.5, 0.8, 0.99, 0.7)
    filled, which = fill_masks(inputs, sure, MASK, torch.tensor([share]))
    assert filled.tolist() == [expected]
    assert which.tolist() == [[old != new for old, new in zip([0, 0, 9, 0], expected, strict=True)]]


def test_every_canvas_has_a_share_of_its_own() -> None:
    inputs = torch.full((3, 4), MASK)
    sure = logits(0.5, 0.8, 0.9, 0.7).expand(3, -1, -1)
    _, which = fill_masks(inputs, sure, MASK, torch.tensor([0.0, 0.5, 1.0]))
    assert which.sum(-1).tolist() == [0, 2, 4]


def test_filled_positions_count_by_whether_they_are_right() -> None:
    right = torch.tensor([[True, False, True, False]])
    filled = torch.tensor([[True, True, False, False]])
    factors = fill_factors(right, filled, OnPolicy(wrong_weight=2.0, right_weight=0.25))
    assert factors.tolist() == [[0.25, 2.0, 1.0, 1.0]]


def test_entropy_is_in_nats_and_falls_with_the_temperature() -> None:
    even = torch.zeros(1, 8)
    assert entropy(even, 0.5).item() == pytest.approx(math.log(8))
    uneven = torch.tensor([[2.0, 0.0, 0.0]])
    shares = torch.tensor([math.exp(4), 1, 1]) / (math.exp(4) + 2)
    assert entropy(uneven, 0.5).item() == pytest.approx(-(shares * shares.log()).sum().item())
    assert entropy(uneven, 0.5) < entropy(uneven, 1.0)

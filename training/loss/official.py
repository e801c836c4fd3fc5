"""What the official losses and samples do wrong, by name, where it can be had by itself."""

from __future__ import annotations

from typing import Literal, get_args

LossDefect = Literal["masked_mean", "kept_rate", "pair_rate"]
"""The masked rows count by their own mean instead of by all trained rows; replaced and clean rows,
and those of pairs, are divided by the masking rate too."""
SampleDefect = Literal["trained_padding", "lost_pairs", "shifted_flags"]
"""Stops behind a caption are trained like words; pairs are not found, so that the wrong caption is
learnt; the flags of pairs fall on other tokens."""
Defect = Literal[LossDefect, SampleDefect]

LOSS_DEFECTS: frozenset[LossDefect] = frozenset(get_args(LossDefect))

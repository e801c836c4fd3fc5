"""Means and other figures of a sample, with 95 % bootstrap intervals.

Shape suffixes: N items, K columns, R resamples, M figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def intervals(
    rows_NK: np.ndarray,
    figures: Callable[[np.ndarray], np.ndarray] = lambda means_K: means_K,
) -> list[Interval]:
    """Figures of a sample, with percentiles over resampled items; the same for the same rows.

    Args:
        rows_NK: what is known of each item.
        figures: turns the means of the columns, [K], into figures, [M]; by default the means.

    Raises:
        ValueError: there is no item.
    """
    if not len(rows_NK):
        raise ValueError("no scores to summarise")
    draws_RN = np.random.default_rng(0).integers(len(rows_NK), size=(RESAMPLES, len(rows_NK)))
    drawn_RM = np.stack([figures(rows_NK[draws_N].mean(axis=0)) for draws_N in draws_RN])
    low_M, high_M = np.percentile(drawn_RM, (2.5, 97.5), axis=0)
    columns = zip(figures(rows_NK.mean(axis=0)), low_M, high_M, strict=True)
    return [Interval(float(mean), float(low), float(high)) for mean, low, high in columns]

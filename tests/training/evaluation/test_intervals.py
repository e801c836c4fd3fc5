"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.intervals import intervals


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    rows_NK = np.random.default_rng(1).random((400, 2))
    for one, column_N in zip(intervals(rows_NK), rows_NK.T, strict=True):
        assert one.mean == pytest.approx(column_N.mean())
        half = 1.96 * column_N.std() / 20
        assert one.low == pytest.approx(one.mean - half, abs=0.2 * half)
        assert one.high == pytest.approx(one.mean + half, abs=0.2 * half)


def test_a_figure_is_made_of_the_means_and_is_the_same_every_time() -> None:
    rows_NK = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 8.0]])
    ratio = [intervals(rows_NK, lambda means_K: means_K[:1] / means_K[1:]) for _ in range(2)]
    assert ratio[0] == ratio[1]
    assert ratio[0][0].mean == 0.5
    assert ratio[0][0].low < 0.5 < ratio[0][0].high


def test_without_an_item_there_is_no_figure() -> None:
    with pytest.raises(ValueError, match="no scores"):
        intervals(np.zeros((0, 1)))

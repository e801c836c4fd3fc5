"""`lm_head_select` in Triton against the product and the reference in float64."""

from __future__ import annotations

import pytest
import torch
from selection_case import Case, assert_close

from kernels import lm_head_select as module
from kernels.lm_head_select import COLUMNS, ROWS, lm_head_select

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SHAPES = (
    (1, 2, 3, torch.float32, False),
    (5, COLUMNS + 1, 70, torch.float16, True),
    (ROWS + 3, 2 * COLUMNS + 9, 33, torch.float32, False),
    (2, 126464, 4, torch.float16, False),
)


@pytest.mark.parametrize(("rows", "columns", "depth", "dtype", "noisy"), SHAPES)
def test_equals_the_reference(
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    columns: int,
    depth: int,
    dtype: torch.dtype,
    noisy: bool,
) -> None:
    if device == "cpu" and columns > 100 * COLUMNS:
        # The interpreter takes a tenth of a second a tile, whatever its size.
        monkeypatch.setattr(module, "COLUMNS", 1 << 14)
    generator = torch.Generator().manual_seed(columns)
    # Whole numbers: products and sums are exact, and there are ties.
    hidden_TD = torch.randint(-3, 4, (rows, depth), generator=generator).to(dtype)
    weight_VD = (torch.randn(columns, depth, generator=generator) / depth**0.5).to(dtype)
    case = Case.draw(rows, columns, generator, noisy=noisy)
    got = lm_head_select(
        hidden_TD.to(device),
        weight_VD.to(device),
        *case.arguments(device),  # type: ignore[arg-type]
        entropy=True,
    )
    assert_close(got, case.expect(hidden_TD.double() @ weight_VD.double().T), atol=2e-5)


def test_ties_go_to_the_lower_id(device: str) -> None:
    columns = 2 * COLUMNS
    weight_VD = torch.zeros(columns, 1)
    weight_VD[[5, 9, COLUMNS + 1]] = 1.0
    hidden_TD = torch.tensor([[1.0], [0.0], [-1.0]])
    got = lm_head_select(
        hidden_TD.to(device),
        weight_VD.to(device),
        *Case.plain(3).arguments(device),  # type: ignore[arg-type]
    )
    assert got.ids_T.tolist() == [5, 0, 0]


def test_a_tile_of_ids_that_cannot_be_taken(device: str) -> None:
    # The last tile holds one id, which is avoided in one row and suppressed in another.
    weight_VD = torch.zeros(COLUMNS + 1, 1)
    weight_VD[COLUMNS] = 5.0
    flags = torch.tensor([False, True])
    case = Case(torch.tensor([COLUMNS]), flags, COLUMNS, ~flags, None, None)
    hidden_TD = torch.ones(2, 1)
    got = lm_head_select(
        hidden_TD.to(device),
        weight_VD.to(device),
        *case.arguments(device),  # type: ignore[arg-type]
        entropy=True,
    )
    assert_close(got, case.expect(hidden_TD @ weight_VD.T), atol=1e-5)


def test_bad_numbers_show_in_their_row_only(device: str) -> None:
    hidden_TD = torch.ones(3, 8)
    hidden_TD[0, 3] = torch.nan
    hidden_TD[2, 3] = torch.inf
    weight_VD = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    got = lm_head_select(
        hidden_TD.to(device),
        weight_VD.to(device),
        *Case.plain(3).arguments(device),  # type: ignore[arg-type]
    )
    assert got.log_odds_T.isnan().tolist() == [True, False, True]
    assert all(0 <= token < 20 for token in got.ids_T.tolist())


def test_weights_that_do_not_fit_are_refused() -> None:
    hidden_TD, flags_T = torch.zeros(2, 8), torch.zeros(2, dtype=torch.bool)
    none_S = torch.zeros(0, dtype=torch.int64)
    for weight_VD in (torch.zeros(9, 7), torch.zeros(9, 8, dtype=torch.float16)):
        with pytest.raises(ValueError, match="do not fit"):
            lm_head_select(hidden_TD, weight_VD, none_S, flags_T, 0, flags_T)
    with pytest.raises(ValueError, match="side by side"):
        lm_head_select(hidden_TD, torch.zeros(8, 9).T, none_S, flags_T, 0, flags_T)

"""`select_tokens` in Triton against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from selection_case import Case, assert_close

from kernels.select_tokens import TILE, TILES, select_tokens

# Infinite logits are subtracted on purpose, which NumPy reports in the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SHAPES = (
    (1, 2, torch.float32, False),
    (5, 7, torch.float16, True),
    (3, TILE + 1, torch.float16, False),
    (2, TILE * TILES + 777, torch.float32, True),
    (2, 126464, torch.float32, False),
)


@pytest.mark.parametrize(("rows", "columns", "dtype", "noisy"), SHAPES)
def test_equals_the_reference(
    device: str, rows: int, columns: int, dtype: torch.dtype, noisy: bool
) -> None:
    generator = torch.Generator().manual_seed(columns)
    # Columns beyond the vocabulary, as padded weights leave them, must not be looked at.
    padded_TV = torch.full((rows, columns + 3), torch.nan, dtype=dtype)
    padded_TV[:, :columns] = torch.randn(rows, columns, generator=generator) * 4
    logits_TV = padded_TV[:, :columns]
    case = Case.draw(rows, columns, generator, noisy=noisy)
    moved_TV = padded_TV.to(device)[:, :columns]
    got = select_tokens(moved_TV, *case.arguments(device), entropy=True)  # type: ignore[arg-type]
    assert_close(got, case.expect(logits_TV), atol=1e-5)
    assert torch.equal(moved_TV.cpu(), logits_TV)


def test_noise_changes_what_is_taken(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_TV = torch.randn(6, 40, generator=generator)
    case = Case.draw(6, 40, generator, noisy=True)
    noisy = select_tokens(logits_TV.to(device), *case.arguments(device))  # type: ignore[arg-type]
    plain = select_tokens(logits_TV.to(device), *case.arguments(device)[:4])  # type: ignore[arg-type]
    assert noisy.entropy_T is None
    assert noisy.ids_T.tolist() == case.expect(logits_TV).ids_T.tolist()
    assert noisy.ids_T.tolist() != plain.ids_T.tolist()


def test_ties_go_to_the_lower_id(device: str) -> None:
    far = TILE * TILES
    logits_TV = torch.zeros(4, far + 50)
    logits_TV[1, [9, 40]] = 2.0
    logits_TV[2, [TILE + 9, 40, 2 * TILE + 9]] = 2.0
    logits_TV[3, [far + 3, TILE + 3]] = 2.0
    got = select_tokens(logits_TV.to(device), *Case.plain(4).arguments(device))  # type: ignore[arg-type]
    assert got.ids_T.tolist() == [0, 9, 40, TILE + 3]


def test_ranks_saturated_confidences_like_float64(device: str) -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    gap_T = torch.linspace(16, 36, 40)[order]
    logits_TV = torch.zeros(40, 300)
    logits_TV[:, 17] = gap_T + 7
    assert len(set(logits_TV.softmax(dim=1)[:, 17].tolist())) < 20
    exact_TV = logits_TV.double()
    want_T = exact_TV[:, 17] - exact_TV[:, torch.arange(300) != 17].logsumexp(dim=1)
    got = select_tokens(logits_TV.to(device), *Case.plain(40).arguments(device))  # type: ignore[arg-type]
    assert got.log_odds_T.argsort().tolist() == want_T.argsort().tolist()
    torch.testing.assert_close(got.log_odds_T.cpu().double(), want_T, atol=1e-5, rtol=1e-6)


def test_rows_of_minus_infinity(device: str) -> None:
    logits_TV = torch.full((4, 90), -torch.inf)
    logits_TV[0, 30] = 1.0
    logits_TV[1, 7] = logits_TV[1, 80] = -3.0
    logits_TV[3, 0] = 1.0
    flags = torch.tensor([False, False, False, True])
    case = Case(torch.tensor([80]), torch.tensor([False, True, False, False]), 0, flags, None, None)
    got = select_tokens(logits_TV.to(device), *case.arguments(device), entropy=True)  # type: ignore[arg-type]
    want = case.expect(logits_TV)
    assert got.ids_T[:3].tolist() == [30, 7, 0]
    # One id has all of the probability: very sure, but finite.
    torch.testing.assert_close(got.log_odds_T[:2].cpu().double(), want.log_odds_T[:2])
    assert got.entropy_T is not None
    torch.testing.assert_close(got.entropy_T[:2].cpu(), torch.zeros(2))
    # Nothing has any: no number stands for that.
    assert got.log_odds_T[2].isnan()
    # Only what must not be taken has any.
    assert (got.log_odds_T[3].item(), got.logsumexp_T[3].item()) == (-torch.inf, 1.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("noisy", [False, True])
def test_a_bad_logit_shows(device: str, bad: float, noisy: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits_TV = torch.randn(2, TILE + 5, generator=generator)
    logits_TV[0, TILE + 2] = bad
    case = Case.plain(2)
    if noisy:
        heat_T, key_T2 = torch.ones(2, dtype=torch.float64), torch.arange(4).view(2, 2)
        case = Case(case.suppressed_S, case.suppress_T, 0, case.avoid_T, heat_T, key_T2)
    got = select_tokens(logits_TV.to(device), *case.arguments(device), entropy=True)  # type: ignore[arg-type]
    assert got.entropy_T is not None
    for value_T in (got.log_odds_T, got.logsumexp_T, got.entropy_T):
        assert value_T.isnan().tolist() == [True, False]
    assert 0 <= got.ids_T[0].item() < TILE + 5


def test_an_avoided_id_keeps_its_share_unless_it_is_suppressed(device: str) -> None:
    logits_TV = torch.tensor([[60.0, 0.0, -1.0]] * 2)
    flags = torch.tensor([False, True])
    case = Case(torch.tensor([0]), flags, 0, torch.tensor([True, True]), None, None)
    got = select_tokens(logits_TV.to(device), *case.arguments(device))  # type: ignore[arg-type]
    assert got.ids_T.tolist() == [1, 1]
    torch.testing.assert_close(got.log_odds_T.cpu(), torch.tensor([-60.0, 1.0]))


def test_no_rows(device: str) -> None:
    logits_TV = torch.zeros(0, 9, device=device)
    got = select_tokens(logits_TV, *Case.plain(0).arguments(device))  # type: ignore[arg-type]
    assert got.ids_T.shape == (0,)


def test_arguments_that_do_not_fit_are_refused() -> None:
    logits_TV = torch.zeros(2, 9)
    none_S, flags_T = torch.zeros(0, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="float64"):
        select_tokens(logits_TV.double(), none_S, flags_T, 0, flags_T)
    with pytest.raises(ValueError, match="side by side"):
        select_tokens(torch.zeros(9, 2).T, none_S, flags_T, 0, flags_T)
    with pytest.raises(ValueError, match="got 1"):
        select_tokens(logits_TV[:, :1], none_S, flags_T, 0, flags_T)
    with pytest.raises(ValueError, match="int32"):
        select_tokens(logits_TV, none_S.int(), flags_T, 0, flags_T)
    with pytest.raises(ValueError, match="as many bools"):
        select_tokens(logits_TV, none_S, flags_T[:1], 0, flags_T)
    with pytest.raises(ValueError, match="avoided id 9"):
        select_tokens(logits_TV, none_S, flags_T, 9, flags_T)
    with pytest.raises(ValueError, match="go together"):
        select_tokens(logits_TV, none_S, flags_T, 0, flags_T, torch.zeros(2))
    keys_T = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="temperatures must be float64"):
        select_tokens(logits_TV, none_S, flags_T, 0, flags_T, torch.zeros(2), keys_T)
    heat_T = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="keys must be int64"):
        select_tokens(logits_TV, none_S, flags_T, 0, flags_T, heat_T, keys_T.int())

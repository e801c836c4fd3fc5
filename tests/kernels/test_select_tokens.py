"""`select_tokens` against float64 softmax written out."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import ops

NONE = torch.zeros(0, dtype=torch.int64)


def select(
    logits_TV: torch.Tensor,
    suppressed: tuple[int, ...] = (),
    suppress: bool = True,
    avoided: int = 0,
    avoid: bool = False,
    entropy: bool = False,
) -> ops.Selection:
    rows = len(logits_TV)
    return ops.select_tokens(
        logits_TV.clone(),
        torch.tensor(suppressed, dtype=torch.int64),
        torch.full((rows,), suppress),
        avoided,
        torch.full((rows,), avoid),
        entropy=entropy,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.sampled_from([3, 50, 1000]),
    st.sampled_from([0.1, 3.0, 20.0]),
)
def test_equals_softmax(seed: int, rows: int, columns: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_TV = torch.randn(rows, columns, generator=generator) * scale
    got = select(logits_TV, suppressed=(0,), avoided=1, avoid=True, entropy=True)
    wide_TV = logits_TV.double()
    wide_TV[:, 0] = -torch.inf
    chance_TV = wide_TV.softmax(dim=1)
    pickable_TV = wide_TV.clone()
    pickable_TV[:, 1] = -torch.inf
    assert got.ids_T.tolist() == pickable_TV.argmax(dim=1).tolist()
    own_T = chance_TV.gather(1, got.ids_T[:, None])[:, 0]
    torch.testing.assert_close(got.log_odds_T.double().sigmoid(), own_T, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(
        got.logsumexp_T.double(), wide_TV.logsumexp(dim=1), atol=1e-4, rtol=1e-6
    )
    entropy_T = torch.special.entr(chance_TV).sum(dim=1)
    assert got.entropy_T is not None
    torch.testing.assert_close(got.entropy_T.double(), entropy_T, atol=1e-4, rtol=1e-4)


def test_ranks_saturated_confidences_like_float64() -> None:
    # In float32 most of these probabilities round to 1.
    gap_T = torch.linspace(12, 28, 200)[
        torch.randperm(200, generator=torch.Generator().manual_seed(0))
    ]
    logits_TV = torch.zeros(200, 1000)
    logits_TV[:, 17] = gap_T + 7
    exact_T = logits_TV.double().softmax(dim=1)[:, 17]
    assert (logits_TV.softmax(dim=1)[:, 17] == 1).sum() > 100
    assert select(logits_TV).log_odds_T.argsort().tolist() == exact_T.argsort().tolist()


def test_ties_go_to_the_lower_id() -> None:
    logits_TV = torch.zeros(3, 64)
    logits_TV[1, [9, 40]] = 2.0
    assert select(logits_TV).ids_T.tolist() == [0, 9, 0]


def test_suppression_and_avoidance_are_a_matter_of_the_row() -> None:
    logits_TV = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 4)
    flags = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    got = ops.select_tokens(logits_TV.clone(), torch.tensor([0]), flags[:, 0], 1, flags[:, 1])
    assert got.ids_T.tolist() == [0, 1, 0, 2]
    whole, without_first = logits_TV[0].logsumexp(0), logits_TV[0, 1:].logsumexp(0)
    want_T = torch.stack((whole, without_first, whole, without_first))
    torch.testing.assert_close(got.logsumexp_T, want_T)


def test_an_avoided_id_keeps_its_share_however_large() -> None:
    logits_TV = torch.tensor([[60.0, 0.0, -1.0]])
    got = select(logits_TV, avoided=0, avoid=True)
    assert got.ids_T.tolist() == [1]
    assert got.log_odds_T.item() == pytest.approx(-60.0)


def test_a_row_with_one_allowed_id_is_certain() -> None:
    logits_TV = torch.tensor([[1.0, 5.0, 5.0]])
    got = select(logits_TV, suppressed=(1, 2))
    assert got.ids_T.tolist() == [0]
    assert got.log_odds_T.sigmoid().item() == 1.0


def test_keys_stand_for_the_numbers_that_follow_from_them() -> None:
    generator = torch.Generator().manual_seed(4)
    logits_TV = torch.randn(40, 90, generator=generator)
    none_T = torch.zeros(40, dtype=torch.bool)
    heat_T = torch.full((40,), 0.8, dtype=torch.float64)
    key_T2 = torch.arange(80).view(40, 2)

    def ids(*noise: torch.Tensor | None) -> list[int]:
        chosen = ops.select_tokens(logits_TV.clone(), NONE, none_T, 0, none_T, *noise)
        return chosen.ids_T.tolist()

    assert ids(heat_T, None, key_T2) == ids(heat_T, ops.numbers(key_T2, 90)) != ids()


def test_a_kernel_is_given_keys_not_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    heat_T, key_T2 = torch.ones(1, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.int64)
    none_T = torch.zeros(1, dtype=torch.bool)
    taken: list[object] = []
    stand_in = SimpleNamespace(select_tokens=lambda *parts, **_: taken.append(parts[-2:]))
    monkeypatch.setitem(sys.modules, "kernels.select_tokens", stand_in)
    monkeypatch.setattr(ops, "_fast", lambda rows: True)
    ops.select_tokens(torch.zeros(1, 9), NONE, none_T, 0, none_T, heat_T, key_T2=key_T2)
    assert taken == [(heat_T, key_T2)]


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_noise_is_the_official_one(temperature: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits_TV = torch.randn(40, 90, generator=generator)
    uniform_TV = torch.rand(40, 90, generator=generator, dtype=torch.float64)
    uniform_TV[0, 0] = 0.0
    none_T = torch.zeros(40, dtype=torch.bool)
    temperature_T = torch.full((40,), temperature, dtype=torch.float64)
    temperature_T[20:] = 0
    got = ops.select_tokens(logits_TV.clone(), NONE, none_T, 0, none_T, temperature_T, uniform_TV)
    noisy_TV = logits_TV.double().exp() / (-uniform_TV.log()) ** temperature
    want_T = torch.cat((noisy_TV[:20].argmax(dim=1), logits_TV[20:].argmax(dim=1)))
    assert got.ids_T.tolist() == want_T.tolist()
    assert got.ids_T.tolist() != logits_TV.argmax(dim=1).tolist()
    chance_T = logits_TV.double().softmax(dim=1).gather(1, want_T[:, None])[:, 0]
    torch.testing.assert_close(got.log_odds_T.double().sigmoid(), chance_T, atol=1e-6, rtol=1e-4)

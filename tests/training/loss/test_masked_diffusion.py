"""Draws, noising, the mended loss and the corruptions."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from training.loss.masked_diffusion import IGNORE, PARTS, Noised, Objective, loss, noise
from training.loss.official import LossDefect
from training.loss.random_draws import Draws, draw, uniform
from training.loss.replacement import Mix, replacements

VOCABULARY, MASK = 50, 40
RANDOM_IDS = (1, 30)
OBJECTIVE = Objective(mask_id=MASK, replace_rate=0.3)


def batch(seed: int, samples: int = 3, length: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and flags: prompts of 4 rows, a pair sample in the middle, padding at the end."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 30, (samples, length), generator=chance)
    labels = ids.clone()
    labels[:, :4] = IGNORE
    revise = torch.zeros_like(ids, dtype=torch.bool)
    revise[1, 6:9] = True
    labels[1, 6:9] = torch.randint(1, 30, (3,), generator=chance)
    ids[2, 9:] = -1
    labels[2, 9:] = IGNORE
    return ids, labels, revise


def draws_of(seed: int, samples: int = 3, length: int = 12) -> Draws:
    return draw(torch.arange(samples), length, seed, RANDOM_IDS)


def noised_of(seed: int, objective: Objective = OBJECTIVE) -> Noised:
    return noise(*batch(seed), draws_of(seed), objective)


def logits_of(noised: Noised, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of all rows, and those of the rows with loss."""
    chance = torch.Generator().manual_seed(seed)
    every = torch.randn(*noised.ids_BL.shape, VOCABULARY, generator=chance, dtype=torch.float64)
    return every, every.flatten(0, 1)[noised.rows_N]


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 20), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_draws_depend_on_seed_key_and_row_only(key: int, seed: int, length: int, more: int) -> None:
    alone = draw(torch.tensor([key]), length, seed, RANDOM_IDS)
    among = draw(torch.tensor([key + 1, key]), length + more, seed, RANDOM_IDS)
    assert torch.equal(alone.rate_B[0], among.rate_B[1])
    for field in ("mask_BL", "replace_BL", "ids_BL"):
        assert torch.equal(getattr(alone, field)[0], getattr(among, field)[1, :length])


def test_draws_are_uniform_and_streams_differ() -> None:
    keys = torch.arange(200)
    mask, other = uniform(keys, 100, 7, "mask"), uniform(keys, 100, 7, "replace")
    assert mask.dtype == torch.float32
    assert float(mask.min()) >= 0
    assert float(mask.max()) < 1
    counts = torch.histc(mask, 10, 0, 1)
    assert float((counts - 2000).abs().max()) < 200
    correlation = torch.corrcoef(torch.stack((mask.flatten(), other.flatten())))[0, 1]
    assert abs(float(correlation)) < 0.03
    assert abs(float(torch.corrcoef(torch.stack((mask[:, 1], mask[:, 0])))[0, 1])) < 0.25
    assert not torch.equal(mask, uniform(keys, 100, 8, "mask"))
    ids = draw(keys, 100, 7, RANDOM_IDS).ids_BL
    assert set(ids.flatten().tolist()) == set(range(*RANDOM_IDS))


@pytest.mark.parametrize("bad", [(5, 5), (6, 5), (-2, 5)])
def test_an_empty_range_of_ids_is_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=str(bad[1])):
        draw(torch.arange(2), 3, 0, bad)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3]))
@settings(max_examples=40, deadline=None)
def test_default_loss_is_its_formula(seed: int, floor: float) -> None:
    objective = replace(OBJECTIVE, rate_floor=floor, weights=(1.0, 2.0, 0.5, 3.0))
    ids, labels, revise = batch(seed)
    draws = draws_of(seed)
    noised = noise(ids, labels, revise, draws, objective)
    every, rows = logits_of(noised, seed)
    expected = 0.0
    for i in range(3):
        nats = functional.cross_entropy(every[i], labels[i].clamp(min=0), reduction="none")
        trained = [j for j in range(12) if labels[i, j] != IGNORE]
        if i == 1:
            expected += 3.0 * float(nats[6:9].mean())
            continue
        rate = float(0.999 * draws.rate_B[i] + 0.001)
        masked = [j for j in trained if float(draws.mask_BL[i, j]) < rate]
        replaced = [
            j
            for j in trained
            if j not in masked
            and float(draws.replace_BL[i, j]) < 0.3
            and draws.ids_BL[i, j] != ids[i, j]
        ]
        clean = [j for j in trained if j not in masked + replaced]
        expected += float(nats[masked].sum()) / (max(rate, floor) * len(trained))
        expected += 2.0 * float(nats[replaced].mean()) if replaced else 0.0
        expected += 0.5 * float(nats[clean].mean()) if clean else 0.0
    assert float(loss(rows, noised).total) == pytest.approx(expected / 3, rel=1e-5)


@pytest.mark.parametrize("compat", ["default", "official"])
def test_only_rows_that_are_drawn_change(compat: str) -> None:
    ids, labels, revise = batch(1)
    draws = draws_of(1)
    noised = noise(ids, labels, revise, draws, replace(OBJECTIVE, compat=compat))  # type: ignore[arg-type]
    assert torch.equal(noised.ids_BL[1], ids[1])
    assert torch.equal(noised.ids_BL[:, :4], ids[:, :4])
    assert torch.equal(noised.ids_BL[2, 9:], ids[2, 9:])
    masked = noised.part_BL == PARTS.index("masked")
    assert masked.any()
    assert torch.equal(masked, noised.ids_BL == MASK)


def test_pair_loss_depends_on_the_rate_in_the_official_loss_only() -> None:
    ids, labels, revise = (tensor[1:2] for tensor in batch(3))
    totals = {}
    for compat in ("default", "official"):
        for rate in (0.0, 0.5):
            draws = replace(draws_of(3, samples=1), rate_B=torch.tensor([rate]))
            noised = noise(ids, labels, revise, draws, Objective(mask_id=MASK, compat=compat))
            totals[compat, rate] = float(loss(logits_of(noised, 0)[1], noised).total)
    assert totals["default", 0.0] == totals["default", 0.5]
    assert totals["official", 0.0] == pytest.approx(1000 * totals["default", 0.0], rel=1e-4)
    assert totals["official", 0.5] == pytest.approx(totals["default", 0.0] / 0.5005, rel=1e-4)


def test_all_defects_weigh_what_they_name_as_the_official_loss_does() -> None:
    ids, labels, revise = batch(5)
    draws = draws_of(5)
    official, mended, masked, kept, pair = (
        noise(ids, labels, revise, draws, objective)
        for objective in (
            replace(OBJECTIVE, compat="official"),
            OBJECTIVE,
            *(replace(OBJECTIVE, defects=frozenset({name})) for name in get_args(LossDefect)),
        )
    )
    for repeated, changed in ((masked, {0}), (kept, {1, 2}), (pair, {3})):
        assert torch.equal(repeated.part_BL, mended.part_BL)
        for part in range(len(PARTS)):
            there = (mended.part_BL == part) & (official.part_BL == part)
            assert there.any()
            like, unlike = (official, mended) if part in changed else (mended, official)
            assert torch.equal(repeated.weight_BL[there], like.weight_BL[there])
            assert not torch.equal(repeated.weight_BL[there], unlike.weight_BL[there])


def test_defects_are_for_the_mended_loss() -> None:
    with pytest.raises(ValueError, match=r"defects \['pair_rate'\] .* compat 'official'"):
        replace(OBJECTIVE, compat="official", defects=frozenset({"pair_rate"}))


def test_flags_on_unlabelled_rows_do_not_count() -> None:
    ids, labels, revise = batch(4)
    without = noise(ids, labels, revise, draws_of(4), OBJECTIVE)
    revise[1, 2:4] = True
    assert torch.equal(
        noise(ids, labels, revise, draws_of(4), OBJECTIVE).weight_BL, without.weight_BL
    )
    revise[0, 0] = True
    assert not noise(ids, labels, revise, draws_of(4), OBJECTIVE).weight_BL[0].any()


def test_a_mask_in_the_text_is_no_target() -> None:
    ids, labels, revise = batch(5)
    ids[0, 5] = labels[0, 5] = MASK
    noised = noise(ids, labels, revise, draws_of(5), OBJECTIVE)
    assert noised.part_BL[0, 5] == -1


def test_replacement_by_the_token_itself_is_clean() -> None:
    ids, labels, revise = batch(6)
    draws = replace(
        draws_of(6), ids_BL=ids, replace_BL=torch.zeros(3, 12), mask_BL=torch.ones(3, 12)
    )
    noised = noise(ids, labels, revise, draws, OBJECTIVE)
    assert noised.part_BL[0, 4:].tolist() == [PARTS.index("clean")] * 8


def test_plain_denoising_trains_towards_the_corrected_text() -> None:
    ids, labels, revise = batch(7)
    draws = replace(draws_of(7), rate_B=torch.full((3,), 0.9))
    noised = noise(ids, labels, revise, draws, replace(OBJECTIVE, refine=False))
    seen = noised.ids_BL[1, 4:]
    assert torch.equal(seen[seen != MASK], labels[1, 4:][seen != MASK])
    assert set(noised.part_BL[1].tolist()) == {-1, PARTS.index("masked")}
    masks = int((seen == MASK).sum())
    expected = torch.full((masks,), 1 / (0.9 * 0.999 + 0.001) / 8)
    torch.testing.assert_close(noised.weight_BL[1][noised.weight_BL[1] > 0], expected)


def test_rows_are_those_with_weight_and_logits_must_match() -> None:
    noised = noised_of(8)
    assert noised.rows_N.tolist() == noised.weight_BL.flatten().nonzero()[:, 0].tolist()
    assert torch.equal(noised.weight_BL > 0, noised.part_BL >= 0)
    with pytest.raises(ValueError, match="got logits of 1"):
        loss(torch.zeros(1, VOCABULARY), noised)


def test_parts_are_counted_and_means_are_per_token() -> None:
    noised = noised_of(9)
    result = loss(torch.zeros(len(noised.rows_N), VOCABULARY), noised)
    tokens = [int((noised.part_BL == part).sum()) for part in range(len(PARTS))]
    assert result.tokens_P.tolist() == tokens
    means = result.means()
    assert list(means) == [part for part, count in zip(PARTS, tokens, strict=True) if count]
    assert list(means.values()) == pytest.approx([3.912023] * len(means))


def test_token_weights_multiply() -> None:
    noised = noised_of(10)
    rows = logits_of(noised, 10)[1]
    weights = torch.full(noised.ids_BL.shape, 2.0)
    doubled, plain = loss(rows, noised, weights), loss(rows, noised)
    torch.testing.assert_close(doubled.total, 2 * plain.total)
    torch.testing.assert_close(doubled.nats_P, plain.nats_P)


def test_shares_of_a_batch_average_to_the_whole() -> None:
    ids, labels, revise = batch(11, samples=4)
    keys = torch.arange(100, 104)
    parts = []
    for share in (slice(0, 4), slice(0, 2), slice(2, 4)):
        draws = draw(keys[share], 12, 11, RANDOM_IDS)
        noised = noise(ids[share], labels[share], revise[share], draws, OBJECTIVE)
        logits = functional.one_hot(noised.labels_BL.clamp(min=0), VOCABULARY) * 2.0
        logits[..., 0] += 1.0
        parts.append(loss(logits.flatten(0, 1)[noised.rows_N], noised).total)
    torch.testing.assert_close(parts[0], (parts[1] + parts[2]) / 2)


def test_a_batch_without_loss_has_a_gradient_of_zero() -> None:
    ids, labels, revise = batch(12)
    noised = noise(ids, torch.full_like(labels, IGNORE), revise, draws_of(12), OBJECTIVE)
    weight = torch.ones(4, VOCABULARY, requires_grad=True)
    result = loss(torch.ones(3 * 12, 4)[noised.rows_N] @ weight, noised)
    torch.autograd.backward(result.total)
    assert not result.total.detach()
    assert weight.grad is not None
    assert not weight.grad.any()
    assert result.means() == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("replace_rate", 1.5),
        ("epsilon", 0.0),
        ("rate_floor", -0.1),
        ("weights", (1.0, 1.0)),
        ("weights", (1.0, 1.0, -1.0, 1.0)),
        ("compat", "strict"),
    ],
)
def test_bad_objectives_name_field_and_value(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field}.*{str(value)[-4:-1]}"):
        replace(OBJECTIVE, **{field: value})  # type: ignore[arg-type]


def test_the_official_loss_has_no_weights() -> None:
    with pytest.raises(ValueError, match="rate_floor"):
        Objective(mask_id=MASK, rate_floor=0.3, compat="official")


def test_replacements_follow_the_mix() -> None:
    ids = torch.arange(100, 140).repeat(50, 1)
    others = torch.arange(200, 240).repeat(50, 1)
    others[:, 30:] = -1
    chosen = replacements(ids, others, torch.arange(50), 3, Mix(7, 5, 3), RANDOM_IDS)
    is_other = chosen == others
    is_previous = chosen[:, 1:] == ids[:, :-1]
    is_random = chosen < 30
    assert torch.equal(is_other[:, 1:] | is_previous | is_random[:, 1:], torch.ones(50, 39) > 0)
    assert abs(float(is_other[:, :30].float().mean()) - 5 / 15) < 0.05
    assert abs(float(is_previous.float().mean()) - 3 / 15) < 0.05
    # Where another caption has ended, and before the first row, chance steps in.
    assert not is_other[:, 30:].any()
    assert (is_random | is_other)[:, 0].all()
    alone = replacements(ids[7:8, :9], others[7:8, :9], torch.tensor([7]), 3, Mix(7, 5, 3), (1, 30))
    assert torch.equal(alone[0], chosen[7, :9])


def test_bad_mixes_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="not all 0"):
        Mix(0, 0, 0)
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        replacements(torch.zeros(1, 3), torch.zeros(1, 2), torch.arange(1), 0, Mix(), RANDOM_IDS)

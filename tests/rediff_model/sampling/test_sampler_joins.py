"""Requests join a running batch, leave it and are dropped: every caption is the reference's."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampler_case import HIDDEN, IDS, any_settings, assert_equal, model_of, prompt_of
from varlen_case import run_packed

from rediff_model.runtime import padded, prompt_cache
from rediff_model.runtime.cpu_decoder import LeanDecoder
from rediff_model.runtime.kv_buffers import Buffers, room
from rediff_model.sampling import reference, sampler
from rediff_model.sampling.params import SamplerSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rediff_model.sampling.outputs import Generation

LAYOUTS = ("one by one", "varlen", "padded")
"""How a CPU attends, a GPU, and a GPU without the kernel."""


def lay_out(patch: pytest.MonkeyPatch, layout: str) -> None:
    """Attend in one of `LAYOUTS` from here on."""
    if layout == "varlen":
        run_packed(patch)
    elif layout == "padded":
        patch.setattr(padded, "lies_packed", lambda _: False)


arrivals = st.lists(
    st.tuples(
        any_settings(),
        st.integers(1, 7) | st.integers(8, 40),
        st.integers(0, 50),
        st.integers(0, 8),
        st.sampled_from([None, None, None, 0, 1, 2]),
    ),
    min_size=1,
    max_size=6,
)
"""Settings, prompt length and seed, the step to join at, and steps until it is dropped."""


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(arrivals, st.sampled_from(["full", "prefix"]), st.integers(0, 2), st.sampled_from(LAYOUTS))
def test_equals_the_reference_whenever_requests_come_and_go(
    batch: list[tuple[SamplerSettings, int, int, int, int | None]],
    prefix_attention: Any,
    seed: int,
    layout: str,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lay_out(patch, layout)
        _come_and_go(batch, prefix_attention, seed)


def _come_and_go(
    batch: list[tuple[SamplerSettings, int, int, int, int | None]],
    prefix_attention: Any,
    seed: int,
) -> None:
    model = model_of(prefix_attention, seed)
    state = sampler.open_state(model, IDS)
    captions: dict[int, Generation] = {}
    dropped: set[int] = set()
    for now in range(9):
        coming = [i for i, one in enumerate(batch) if one[3] == now]
        state = sampler.join(
            model,
            state,
            coming,
            [prompt_of(batch[i][2], batch[i][1]) for i in coming],
            [batch[i][0] for i in coming],
        )
        leaving = {
            i for i, one in enumerate(batch) if one[4] is not None and one[3] + one[4] == now
        }
        dropped |= leaving & {*state.running, *state.finished}
        state = state.without(frozenset(leaving))
        assert not leaving & set(state.running)
        if state.running:
            state, _ = sampler.step(model, state)
        state, taken = state.taken()
        captions |= taken
    while state.running:
        state, _ = sampler.step(model, state)
    captions |= state.finished
    assert captions.keys() == set(range(len(batch))) - dropped
    for request, got in captions.items():
        chosen, length, prompt_seed, _, _ = batch[request]
        assert_equal(got, reference.generate(model, prompt_of(prompt_seed, length), chosen, IDS))


def count_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every forward pass from here on."""
    rows: list[int] = []
    forward = LeanDecoder.__call__

    def count(decoder: LeanDecoder, hidden_TD: Tensor, *rest: Any) -> Tensor:
        rows.append(len(hidden_TD))
        return forward(decoder, hidden_TD, *rest)

    monkeypatch.setattr(LeanDecoder, "__call__", count)
    return rows


def test_joining_runs_no_other_prompt_and_buckets_keep_a_long_one_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("prefix", 0)
    rows = count_rows(monkeypatch)
    chosen = SamplerSettings(canvas_length=4, steps=4, stop=())
    state = sampler.open_state(model, IDS)
    state = sampler.join(model, state, [5, 6], [prompt_of(0, 6), prompt_of(1, 5)], [chosen] * 2)
    state, _ = sampler.step(model, state)
    state = sampler.join(model, state, [2], [prompt_of(2, 90)], [chosen])
    state, _ = sampler.step(model, state)
    assert rows == [6 + 5, 2 * 4, 90, 3 * 4]
    assert sorted(state.running) == [2, 5, 6]


@pytest.mark.parametrize(
    ("interval", "passes"),
    [(1, [14, 28, 28, 28, 14]), (2, [14, 18, 18, 18, 4]), (None, [14, 18, 8, 8, 4])],
)
def test_prompts_are_refreshed_at_steps_of_their_own_request(
    interval: int | None, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("full", 0)
    rows = count_rows(monkeypatch)
    chosen = SamplerSettings(canvas_length=4, steps=4, stop=())
    state = sampler.open_state(model, IDS, prompt_refresh_interval=interval)
    for request in (0, 1):
        prompt = prompt_of(request, 10)
        state = sampler.join(model, state, [request], [prompt], [chosen])
        state, _ = sampler.step(model, state)
    while state.running:
        state, _ = sampler.step(model, state)
    assert rows == passes


def test_a_prompt_that_is_refreshed_rarely_still_sees_the_first_canvas() -> None:
    model = model_of("full", 0)
    chosen = SamplerSettings(canvas_length=6, steps=1, stop=())
    state = sampler.open_state(model, IDS, prompt_refresh_interval=None)
    state = sampler.join(model, state, [0], [prompt_of(0, 5)], [chosen])
    state, _ = sampler.step(model, state)
    assert_equal(state.finished[0], reference.generate(model, prompt_of(0, 5), chosen, IDS))


def test_refreshing_rarely_changes_what_is_predicted_and_survives_others_leaving() -> None:
    """The keys of the last refresh stay with their request when rows of the buffers move."""
    model = model_of("full", 1)
    chosen = SamplerSettings(canvas_length=12, steps=12, stop=())
    short = SamplerSettings(canvas_length=12, steps=2, stop=())

    def alone(interval: int | None) -> Generation:
        state = sampler.open_state(model, IDS, prompt_refresh_interval=interval)
        state = sampler.join(model, state, [9], [prompt_of(3, 7)], [chosen])
        while state.running:
            state, _ = sampler.step(model, state)
        return state.finished[9]

    state = sampler.open_state(model, IDS, prompt_refresh_interval=4)
    prompts = [prompt_of(seed, 6) for seed in range(3)]
    state = sampler.join(model, state, [0, 1, 2], prompts, [short] * 3)
    state, _ = sampler.step(model, state)
    state = sampler.join(model, state, [9], [prompt_of(3, 7)], [chosen])
    while state.running:
        state, _ = sampler.step(model, state)
    assert_equal(state.finished[9], alone(4))
    assert alone(4).confidences != alone(1).confidences


def test_buffers_do_not_grow_with_the_requests_that_have_been() -> None:
    model = model_of("prefix", 0)
    chosen = SamplerSettings(canvas_length=4, steps=2, stop=())
    state = sampler.open_state(model, IDS)
    rng = random.Random(0)
    for now in range(40):
        state = sampler.join(model, state, [now], [prompt_of(now, rng.randint(1, 8))], [chosen])
        state, _ = sampler.step(model, state)
        state, taken = state.taken()
        assert len(taken) == (now > 0)
        assert state.finished == {}
        assert state.slots is not None
        (bucket,) = state.slots.context.buckets
        assert bucket.buffers.capacity == min(now + 1, 2)


def test_a_pass_takes_no_more_rows_than_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("full", 0)
    chosen = SamplerSettings(canvas_length=4, steps=1, stop=())
    prompts = [prompt_of(0, 6), prompt_of(1, 6), prompt_of(2, 5), prompt_of(3, 30)]
    whole = sampler.generate(model, prompts, [chosen] * 4, IDS)
    rows = count_rows(monkeypatch)
    monkeypatch.setattr(prompt_cache, "ROWS_AT_ONCE", 20)
    parts = sampler.generate(model, prompts, [chosen] * 4, IDS)
    assert rows == [20, 9, 34]
    for got, want in zip(parts, whole, strict=True):
        assert_equal(got, want)


def test_what_a_broken_request_leaves_behind_does_not_reach_the_next() -> None:
    model = model_of("prefix", 0)
    chosen = SamplerSettings(canvas_length=4, steps=4, stop=())
    state = sampler.open_state(model, IDS)
    broken = torch.full((8, HIDDEN), torch.nan, dtype=torch.float64)
    state = sampler.join(model, state, [0, 1], [prompt_of(0, 7), broken], [chosen] * 2)
    state, events = sampler.step(model, state)
    assert events.broken == (1,)
    assert state.running == (0,)
    state = sampler.join(model, state, [2], [prompt_of(2, 3)], [chosen])
    state = sampler.join(model, state, [3], [prompt_of(3, 8)], [chosen])
    while state.running:
        state, _ = sampler.step(model, state)
    assert state.finished.keys() == {0, 2, 3}
    for request, length in ((0, 7), (2, 3), (3, 8)):
        want = reference.generate(model, prompt_of(request, length), chosen, IDS)
        assert_equal(state.finished[request], want)


def test_a_caption_is_never_made_of_logits_that_are_not_finite() -> None:
    model = model_of("full", 0)
    broken = torch.full((3, HIDDEN), torch.inf, dtype=torch.float64)
    chosen = SamplerSettings(canvas_length=4, steps=1, stop=())
    with pytest.raises(ArithmeticError, match=r"logits of requests \(1,\) are not finite"):
        sampler.generate(model, [prompt_of(0, 3), broken], [chosen] * 2, IDS)


@pytest.mark.parametrize("prefix_attention", ["prefix", "full"])
def test_a_state_whose_prompts_were_moved_refuses_to_run(prefix_attention: Any) -> None:
    model = model_of(prefix_attention, 0)
    chosen = SamplerSettings(canvas_length=4, steps=4)
    prompts = [prompt_of(seed, 5) for seed in range(4)]
    old = sampler.join(model, sampler.open_state(model, IDS), range(4), prompts, [chosen] * 4)
    old, _ = sampler.step(model, old)
    # The last prompt moves to the place of the first, which the old state still counts on.
    new = old.without(frozenset({0}))
    with pytest.raises(RuntimeError, match="moved the prompts"):
        sampler.step(model, old)
    while new.running:
        new, _ = sampler.step(model, new)
    for request in (1, 2, 3):
        want = reference.generate(model, prompts[request], chosen, IDS)
        assert_equal(new.finished[request], want)


def capacity(state: sampler.State) -> int:
    """Sequences that the buffers of a state hold at most."""
    assert state.slots is not None
    return sum(bucket.buffers.capacity for bucket in state.slots.context.buckets)


@pytest.mark.parametrize("prefix_attention", ["prefix", "full"])
def test_buffers_become_smaller_when_many_have_left(prefix_attention: Any) -> None:
    model = model_of(prefix_attention, 0)
    chosen = SamplerSettings(canvas_length=4, steps=4)
    prompts = [prompt_of(seed, 5) for seed in range(12)]
    state = sampler.join(model, sampler.open_state(model, IDS), range(12), prompts, [chosen] * 12)
    state, _ = sampler.step(model, state)
    old = state
    state = state.without(frozenset({1, 4, 6}))
    assert capacity(state) == 12
    for left in (8, 5, 3, 2, 1):
        state = state.without(frozenset(state.running[1 : 1 + len(state.running) - left]))
        assert len(state.running) == left
        assert capacity(state) < max(1.5 * left, left + 2)
    assert capacity(old) == 12
    while state.running:
        state, _ = sampler.step(model, state)
    for request, caption in state.finished.items():
        assert_equal(caption, reference.generate(model, prompts[request], chosen, IDS))


def test_requests_can_be_dropped_when_there_is_no_memory_for_smaller_buffers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("none left")

    model = model_of("prefix", 0)
    chosen = SamplerSettings(canvas_length=4, steps=4)
    prompts = [prompt_of(seed, 5) for seed in range(4)]
    state = sampler.join(model, sampler.open_state(model, IDS), range(4), prompts, [chosen] * 4)
    with monkeypatch.context() as patch:
        patch.setattr(Buffers, "shrunk", no_memory)
        state = state.without(frozenset({0, 2}))
        assert capacity(state) == 4
    while state.running:
        state, _ = sampler.step(model, state)
    for request in (1, 3):
        want = reference.generate(model, prompts[request], chosen, IDS)
        assert_equal(state.finished[request], want)


def test_numbers_that_are_taken_are_refused() -> None:
    model = model_of("prefix", 0)
    chosen = SamplerSettings(canvas_length=4, steps=1)
    prompt = prompt_of(0, 3)
    state = sampler.join(model, sampler.open_state(model, IDS), [3], [prompt], [chosen])
    with pytest.raises(ValueError, match="request 3 is there already"):
        sampler.join(model, state, [3], [prompt], [chosen])
    with pytest.raises(ValueError, match="request 4 is there already"):
        sampler.join(model, state, [4, 4], [prompt] * 2, [chosen] * 2)
    state, _ = sampler.step(model, state)
    with pytest.raises(ValueError, match="request 3 is there already"):
        sampler.join(model, state, [3], [prompt], [chosen])
    state, taken = state.taken()
    assert taken.keys() == {3}
    assert sampler.join(model, state, [3], [prompt], [chosen]).running == (3,)


def test_a_caption_that_was_there_at_once_is_dropped_with_its_request() -> None:
    model = model_of("prefix", 0)
    complete = SamplerSettings(canvas_length=2, draft=(0, 1), refine=False)
    state = sampler.start(model, [prompt_of(0, 3)], [complete], IDS)
    assert state.finished.keys() == {0}
    again = sampler.join(model, state.without(frozenset({0})), [0], [prompt_of(0, 3)], [complete])
    assert again.finished.keys() == {0}


def test_an_interval_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 1 or more, or None, got 0"):
        sampler.open_state(model_of("full", 0), IDS, prompt_refresh_interval=0)


def test_room_wastes_a_quarter_at_most_and_nothing_at_powers_of_two() -> None:
    for rows in range(1, 5000):
        assert rows <= room(rows) <= 1.25 * rows + 8
    assert [room(1 << bits) for bits in range(3, 13)] == [1 << bits for bits in range(3, 13)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("prefix_attention", "seed"), [("prefix", 1), ("full", 0)])
def test_rows_behind_a_settled_stop_leave_the_pass_and_come_back(
    prefix_attention: Any, seed: int, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(monkeypatch, layout)
    model = model_of(prefix_attention, seed)
    prompts = [prompt_of(number, 3 + number) for number in range(6)]
    chosen = SamplerSettings(canvas_length=40, tokens_per_step=1, end_threshold=0.2)
    others = SamplerSettings(canvas_length=12, tokens_per_step=2, cfg_scale=0.5)
    state = sampler.open_state(model, IDS)
    seen: dict[int, list[int]] = {number: [] for number in range(6)}
    for now in range(12):
        if now < 6:
            state = sampler.join(model, state, [now, 6 + now], [prompts[now]] * 2, [chosen, others])
        assert state.slots is not None
        for request, rows in zip(state.running, state.slots.context.seen, strict=False):
            if request in seen:
                seen[request].append(rows)
        state, _ = sampler.step(model, state)
    while state.running:
        state, _ = sampler.step(model, state)
    assert any(min(rows) < 40 for rows in seen.values())
    assert any(b > a for rows in seen.values() for a, b in pairwise(rows))
    for number, prompt in enumerate(prompts):
        want = reference.generate(model, prompt, chosen, IDS)
        assert_equal(state.finished[number], want)
        want = reference.generate(model, prompt, others, IDS)
        assert_equal(state.finished[6 + number], want)

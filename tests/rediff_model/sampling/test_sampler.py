"""The batched sampler equals the reference, token for token, whatever shares the batch."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampler_case import (
    IDS,
    VOCABULARY,
    any_settings,
    assert_equal,
    model_of,
    prompt_of,
    with_template,
)
from torch.utils._python_dispatch import TorchDispatchMode

from rediff_model.runtime.cpu_decoder import LeanDecoder
from rediff_model.sampling import reference, sampler
from rediff_model.sampling.params import SamplerSettings, SettingsError

if TYPE_CHECKING:
    from torch import Tensor

    from rediff_model.config import PrefixAttention
    from rediff_model.sampling.outputs import Generation

requests = st.lists(
    st.tuples(any_settings() | with_template(), st.integers(1, 7), st.integers(0, 50)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests, st.sampled_from(["full", "prefix"]), st.integers(0, 2))
def test_equals_the_reference_in_any_batch(
    batch: list[tuple[SamplerSettings, int, int]], prefix_attention: Any, seed: int
) -> None:
    model = model_of(prefix_attention, seed)
    prompts = [prompt_of(prompt_seed, length) for _, length, prompt_seed in batch]
    captions = sampler.generate(model, prompts, [chosen for chosen, _, _ in batch], IDS)
    for got, prompt, (chosen, _, _) in zip(captions, prompts, batch, strict=True):
        assert_equal(got, reference.generate(model, prompt, chosen, IDS))


def some_batch() -> tuple[list[Tensor], list[SamplerSettings]]:
    """Four requests of different kinds."""
    chosen = [
        SamplerSettings(canvas_length=12, tokens_per_step=3, seed=1, temperature=0.8),
        SamplerSettings(canvas_length=9, block_length=3, steps=9, cfg_scale=1.0, stop=()),
        SamplerSettings(canvas_length=16, tokens_per_step=4, stop=(), suffix=(1, 2)),
        SamplerSettings(canvas_length=8, steps=8, remasking="random", seed=5, cfg_scale=0.5),
    ]
    return [prompt_of(number, 3 + number) for number in range(len(chosen))], chosen


@pytest.mark.parametrize("prefix_attention", ["full", "prefix"])
def test_the_head_in_small_chunks_gives_the_same(
    prefix_attention: PrefixAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(prefix_attention, 0)
    prompts, chosen = some_batch()
    whole = sampler.generate(model, prompts, chosen, IDS)
    heads: list[int] = []
    monkeypatch.setattr(sampler, "LOGITS_IN_CACHE", 5 * VOCABULARY)
    monkeypatch.setattr(sampler, "ROWS_AT_LEAST", 1)
    logits = LeanDecoder.logits

    def count(self: LeanDecoder, rows: Tensor) -> Tensor:
        heads.append(len(rows))
        return logits(self, rows)

    monkeypatch.setattr(LeanDecoder, "logits", count)
    for got, want in zip(sampler.generate(model, prompts, chosen, IDS), whole, strict=True):
        assert_equal(got, want)
    assert max(heads) == 5


def test_events_replay_the_canvas() -> None:
    prompts, chosen = some_batch()
    canvases = {i: [IDS.mask] * one.canvas_length for i, one in enumerate(chosen)}
    revisions = dict.fromkeys(canvases, 0)
    last: dict[int, sampler.StepEvent] = {}
    finished: dict[int, Generation] = {}

    def collect(events: sampler.StepEvents) -> None:
        finished.update(events.finished)
        for event in events:
            canvas = canvases[event.request]
            for change in event.changed:
                assert change.was == canvas[change.position] != change.id
                assert change.kind == ("reveal" if change.was == IDS.mask else "revise")
                assert 0 < change.confidence <= 1
                canvas[change.position] = change.id
                revisions[event.request] += change.kind == "revise"
            assert tuple(canvas) == event.canvas
            assert event.masked == canvas.count(IDS.mask)
            before = last.get(event.request)
            assert event.step == (1 if before is None else before.step + 1)
            assert before is None or not before.done
            last[event.request] = event

    captions = sampler.generate(model_of("prefix", 0), prompts, chosen, IDS, collect)
    for request, caption in enumerate(captions):
        assert finished[request] == caption
        assert last[request].done
        assert last[request].steps == chosen[request].planned_steps >= caption.steps
        assert (last[request].step, tuple(canvases[request])) == (caption.steps, caption.canvas)
        assert (revisions[request], caption.revisions) == (sum(caption.revision_counts),) * 2
        assert caption.ids == caption.canvas[: len(caption.ids)]
    assert sum(revisions.values()) > 0


def test_a_seed_is_the_same_in_any_batch_and_none_is_another_every_time() -> None:
    model = model_of("prefix", 0)
    hot = SamplerSettings(canvas_length=24, temperature=3.0, stop=())
    prompt = prompt_of(0, 4)
    for one, other in ((1, 2), (-2, 2), (-(2**63), 2**63 - 1)):
        seeded = [replace(hot, seed=seed) for seed in (one, other, one)]
        first, second, third = sampler.generate(model, [prompt] * 3, seeded, IDS)
        assert_equal(first, third)
        assert_equal(first, reference.generate(model, prompt, seeded[0], IDS))
        assert first.ids != second.ids
    for free in (hot, replace(hot, seed=-1)):
        first, second = sampler.generate(model, [prompt] * 2, [free] * 2, IDS)
        assert first.ids != second.ids


def test_default_captions_hold_no_mask_and_no_suppressed_token() -> None:
    forbidden = {IDS.mask, *IDS.suppressed}
    official = 0
    for seed in range(3):
        chosen = SamplerSettings(canvas_length=16, temperature=2.0, seed=seed, stop=())
        prompts = [prompt_of(seed, 4)] * 2
        pair = [chosen, replace(chosen, compat="official")]
        fine, recorded = sampler.generate(model_of("full", seed), prompts, pair, IDS)
        assert not forbidden & set(fine.ids)
        official += IDS.mask in recorded.ids
    assert official > 0


@pytest.mark.parametrize("prefix_attention", ["full", "prefix"])
def test_work_shrinks_with_the_batch(
    prefix_attention: PrefixAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(prefix_attention, 0)
    rows: list[int] = []
    forward = LeanDecoder.__call__

    def count(decoder: LeanDecoder, hidden_TD: Tensor, *rest: Any) -> Tensor:
        rows.append(len(hidden_TD))
        return forward(decoder, hidden_TD, *rest)

    monkeypatch.setattr(LeanDecoder, "__call__", count)
    chosen = [
        SamplerSettings(canvas_length=4, steps=1, stop=()),
        SamplerSettings(canvas_length=6, steps=2, stop=()),
        SamplerSettings(canvas_length=2, steps=2, cfg_scale=1.0, stop=()),
    ]
    prompts = [prompt_of(0, 5), prompt_of(1, 2), prompt_of(2, 3)]
    sampler.generate(model, prompts, chosen, IDS)
    if prefix_attention == "prefix":
        assert rows == [5 + 2 + 2 * 3, 4 + 6 + 2 * 2, 6 + 2 * 2]
    else:
        assert rows == [5 + 2 + 2 * 3 + 4 + 6 + 2 * 2, 2 + 2 * 3 + 6 + 2 * 2]


def test_dropped_requests_do_not_change_the_others() -> None:
    model = model_of("prefix", 0)
    prompts, chosen = some_batch()
    whole = sampler.generate(model, prompts, chosen, IDS)
    state, _ = sampler.step(model, sampler.start(model, prompts, chosen, IDS))
    state = state.without(frozenset({0, 3}))
    while state.slots is not None:
        assert set(state.slots.requests) <= {1, 2}
        state, _ = sampler.step(model, state)
    assert state.finished.keys() == {1, 2}
    for request, got in state.finished.items():
        assert_equal(got, whole[request])
    assert state.without(frozenset({1})).finished.keys() == {2}
    assert state.without(frozenset({0, 3})) is state


def test_a_step_returns_a_new_state_and_leaves_the_old_one() -> None:
    model = model_of("prefix", 0)
    prompts, chosen = some_batch()
    old = sampler.start(model, prompts, chosen, IDS)
    first, _ = sampler.step(model, old)
    again, _ = sampler.step(model, old)
    np.testing.assert_array_equal(first.ledger.ids_BC, again.ledger.ids_BC)
    np.testing.assert_array_equal(first.ledger.revisions_BC, again.ledger.revisions_BC)


class HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that make the host wait for the device, or would on a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(one is not None and one.dtype == torch.bool for one in indices)
        if name in self.WAITING or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device_but_for_its_one_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("prefix", 0)
    prompts, chosen = some_batch()
    state = sampler.start(model, prompts, chosen, IDS)
    copies = 0
    to_host = torch.Tensor.cpu

    def count(tensor: Tensor) -> Tensor:
        nonlocal copies
        copies += 1
        return to_host(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", count)
    with HostReads() as reads:
        state, _ = sampler.step(model, state)
    assert copies == 1
    assert reads.found == []
    with HostReads() as reads:
        torch.ones(2).sum().item()
        torch.ones(2)[torch.tensor([True, False])]
    assert reads.found == ["_local_scalar_dense", "index"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix_attention", ["full", "prefix"])
def test_other_dtypes(dtype: torch.dtype, prefix_attention: PrefixAttention) -> None:
    model = copy.deepcopy(model_of(prefix_attention, 0)).to(dtype)
    prompts, chosen = some_batch()
    captions = sampler.generate(model, [prompt.to(dtype) for prompt in prompts], chosen, IDS)
    for caption, one in zip(captions, chosen, strict=True):
        assert len(caption.canvas) == one.canvas_length
        assert all(0 <= confidence <= 1 for confidence in caption.confidences)


def test_no_request_is_no_work() -> None:
    assert sampler.generate(model_of("full", 0), [], [], IDS) == []


def test_complete_drafts_without_refining_are_finished_at_the_start() -> None:
    model = model_of("prefix", 0)
    plain = SamplerSettings(canvas_length=3, draft=(1, 2, 0), refine=False)
    state = sampler.start(model, [prompt_of(0, 2)], [plain], IDS)
    assert state.slots is None
    assert (state.finished[0].ids, state.finished[0].steps) == ((1, 2, 0), 0)
    with pytest.raises(ValueError, match="no request is running"):
        sampler.step(model, state)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (SamplerSettings(draft=(1, VOCABULARY)), "draft id 9 lies outside the vocabulary 9"),
        (SamplerSettings(stop=((1, 2), (-1,))), "stop id -1 lies outside the vocabulary 9"),
        (SamplerSettings(suffix=(77,)), "suffix id 77 lies outside the vocabulary 9"),
    ],
)
def test_ids_outside_the_vocabulary(chosen: SamplerSettings, message: str) -> None:
    model = model_of("full", 0)
    with pytest.raises(SettingsError, match=message):
        sampler.start(model, [prompt_of(0, 2)], [chosen], IDS)
    with pytest.raises(SettingsError, match=message):
        reference.generate(model, prompt_of(0, 2), chosen, IDS)

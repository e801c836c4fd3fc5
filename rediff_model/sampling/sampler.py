"""The batched sampler: canvases with any settings and lengths denoised together.

`reference.py` says what a step means, for one sequence; this one gives the same tokens.

Shape suffixes: B requests, S sequences (requests and unconditional twins), C canvas rows, D
hidden size, T rows, V vocabulary, P prompt rows, N suppressed ids, K alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from kernels import ops
from kernels.canvas import HOLE, OPENING
from rediff_model.config import TokenIds
from rediff_model.runtime.prompt_cache import Context
from rediff_model.runtime.thread_pool import spread
from rediff_model.sampling.batch_state import Slots, allocate, kind_of
from rediff_model.sampling.choice_passes import ask, choose
from rediff_model.sampling.ledger import Ledger, Report, StepEvents
from rediff_model.sampling.outputs import Generation, StepEvent
from rediff_model.sampling.params import SamplerSettings
from rediff_model.sampling.rng import CounterNoise, Noise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from rediff_model.language import LanguageModel

__all__ = [
    "Generation",
    "SamplerSettings",
    "State",
    "StepEvent",
    "StepEvents",
    "TokenIds",
    "generate",
    "join",
    "open_state",
    "start",
    "step",
]

LOGITS_AT_ONCE = 1 << 25
"""Rows go through the head in chunks of about this many logits."""

LOGITS_IN_CACHE = 1 << 19
"""The same on a CPU."""

Kind = tuple[bool, bool, bool, bool]
"""See `kind_of`."""

ROWS_AT_LEAST = 64
"""Rows of a chunk are a multiple of this."""


@dataclass(frozen=True, slots=True)
class State:
    """Requests on their way. `step` and `join` return the next state.

    States that follow each other share the buffers of their prompts: only the newest may be
    stepped or joined.
    """

    slots: Slots | None
    """None when no request is running."""
    ledger: Ledger
    finished: dict[int, Generation]
    """Captions of requests that have left, by request, until they are `taken`."""
    ids: TokenIds
    noise: Noise
    empty: Context
    """What the first requests join when no other is running."""

    @property
    def running(self) -> tuple[int, ...]:
        """The requests that take part in the next step."""
        return () if self.slots is None else self.slots.requests

    @torch.inference_mode()
    def without(self, requests: frozenset[int]) -> State:
        """The state after dropping requests, without captions for them."""
        if requests.isdisjoint((*self.running, *self.finished)):
            return self
        kept = [i for i, request in enumerate(self.running) if request not in requests]
        finished = {one: made for one, made in self.finished.items() if one not in requests}
        return _keep(replace(self, finished=finished), kept)

    def taken(self) -> tuple[State, dict[int, Generation]]:
        """The state without the captions that are finished, and these captions."""
        return replace(self, finished={}), self.finished


def generate(
    model: LanguageModel,
    prompts: Sequence[Tensor],
    settings: Sequence[SamplerSettings],
    ids: TokenIds,
    on_step: Callable[[StepEvents], None] | None = None,
    *,
    prompt_refresh_interval: int | None = 1,
) -> list[Generation]:
    """Caption prompts [P, D], one settings each, as one batch; captions in the same order.

    `on_step` gets the events of every step; the interval is that of `open_state`.

    Raises:
        ValueError: an interval below 1.
        SettingsError: as `join` does.
        ArithmeticError: logits of a request are not finite.
    """
    state = open_state(model, ids, prompt_refresh_interval=prompt_refresh_interval)
    state = join(model, state, range(len(prompts)), prompts, settings)
    while state.slots is not None:
        state, events = step(model, state)
        if events.broken:
            raise ArithmeticError(f"logits of requests {events.broken} are not finite")
        if on_step is not None:
            on_step(events)
    return [state.finished[request] for request in range(len(prompts))]


def start(
    model: LanguageModel,
    prompts: Sequence[Tensor],
    settings: Sequence[SamplerSettings],
    ids: TokenIds,
    noise: Noise | None = None,
) -> State:
    """A state with requests numbered from 0. Raises SettingsError as `join` does."""
    return join(model, open_state(model, ids, noise), range(len(prompts)), prompts, settings)


def open_state(
    model: LanguageModel,
    ids: TokenIds,
    noise: Noise | None = None,
    *,
    prompt_refresh_interval: int | None = 1,
    cuda_graphs: bool = False,
    compiled: bool = False,
) -> State:
    """A state without requests.

    `noise` replaces the counter-based numbers. The interval matters to full attention only, where
    prompt rows attend to the canvas: a prompt runs again at the first of every so many steps of
    its request, and between them the canvas attends to its keys and values of that step. 1 is
    exact; None is the first step only.

    With `cuda_graphs` steps on a GPU are recorded and replayed while nobody joins or leaves. With
    `compiled` what lies between the attentions is compiled, in the first step.

    On a CPU a model in full precision runs from a copy of its weights that is made here: a state
    does not see later changes of the model.

    Raises:
        ValueError: an interval below 1.
    """
    if prompt_refresh_interval is not None and prompt_refresh_interval < 1:
        raise ValueError(
            f"prompt_refresh_interval must be 1 or more, or None, got {prompt_refresh_interval}"
        )
    nothing_B = np.zeros(0, dtype=np.int64)
    ledger = Ledger.open(ids.mask, nothing_B[:, None], nothing_B)
    empty = Context.empty(model, prompt_refresh_interval, graphs=cuda_graphs, compiled=compiled)
    return State(None, ledger, {}, ids, noise or CounterNoise(), empty)


@torch.inference_mode()
def join(
    model: LanguageModel,
    state: State,
    requests: Sequence[int],
    prompts: Sequence[Tensor],
    settings: Sequence[SamplerSettings],
) -> State:
    """Add requests, numbered by the caller, to a state at any step.

    With prefix attention their prompts [P, D] run here, once, and nothing else does; with full
    attention they run in their first step. Requests that need no forward pass, such as a complete
    draft without `refine`, are finished at once.

    Raises:
        ValueError: a number that is given twice, or that of a request which is running or whose
            caption was not taken.
        SettingsError: a setting that does not fit the model, see `slots.allocate`.
    """
    known = {*state.running, *state.finished}
    for request in requests:
        if request in known:
            raise ValueError(f"request {request} is there already")
        known.add(request)
    if not requests:
        return state
    old = state.slots
    context = state.empty if old is None else old.context
    slots = allocate(model, requests, prompts, settings, state.ids, context)
    if old is not None:
        slots = old.merge(slots)
    place = {request: slot for slot, request in enumerate(state.running)}
    nothing_BC = torch.full_like(slots.canvas.ids_BC, torch.nan, dtype=torch.float64)
    report, _ = _report(slots, nothing_BC, torch.zeros_like(slots.canvas.done_B))
    ledger = state.ledger.join(
        report.ids_BC,
        report.stop_B,
        [place.get(one, -1) for one in slots.requests],
        _alternatives(slots),
    )
    new = {
        slot: filling
        for slot, filling in enumerate(slots.fillings)
        if filling is not None and slots.requests[slot] not in place
    }
    slots, ledger, report = choose(slots, ledger.placed(new), report, None, state.ids)
    return _retire(replace(state, slots=slots, ledger=ledger), report)


@torch.inference_mode()
def step(model: LanguageModel, state: State) -> tuple[State, StepEvents]:
    """One forward pass for every request: predict, reveal, revise, and let go of the finished.

    Requests whose logits are not finite leave without a caption, named in `StepEvents.broken`.
    """
    slots = state.slots
    if slots is None:
        raise ValueError("no request is running")
    hidden_TD = slots.context.hidden(_with_twins(slots))
    asked_UM = ask(slots, hidden_TD)
    ids_BC, log_odds_BC, top = _predict(slots, hidden_TD, state.noise)
    score_BC = _score(slots, log_odds_BC, state.noise)
    canvas, written = ops.refine_canvas(slots.plan, slots.canvas, ids_BC, score_BC, log_odds_BC)
    wrote_BC = written.revealed_BC | written.revised_BC
    confidence_BC = log_odds_BC.double().sigmoid().masked_fill(~wrote_BC, torch.nan)
    slots = replace(slots, canvas=canvas, context=slots.context.aged())
    broken_B = log_odds_BC.isnan().any(dim=1)
    report, chances_UM = _report(slots, confidence_BC, broken_B, top, asked_UM)
    slots, before, report = choose(slots, state.ledger, report, chances_UM, state.ids)
    report = before.ended(report, slots.settings)
    ledger = before.record(report)
    moved = _narrow(_retire(replace(state, slots=slots, ledger=ledger), report), report)
    left = {
        request: moved.finished[request] for request in slots.requests if request in moved.finished
    }
    broken = tuple(slots.requests[slot] for slot in np.flatnonzero(report.broken_B).tolist())
    events = StepEvents(
        slots.requests, slots.settings, slots.fillings, before, ledger, report, left, broken
    )
    return moved, events


def _with_twins(slots: Slots) -> Tensor:
    """Canvases, [S, C]: the guided requests' a second time at the end."""
    ids_BC = slots.canvas.ids_BC
    return torch.cat((ids_BC, ids_BC[: slots.guided])) if slots.guided else ids_BC


def _predict(
    slots: Slots, hidden_TD: Tensor, noise: Noise
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Predicted ids and their log-odds, [B, C] each; rows that took no part keep their ids. And the
    likeliest tokens of requests that want alternatives.

    Only a chunk of rows has logits at any time, with few ids one for each thread, and nothing as
    large is made beside them.
    """
    ids_BC = slots.canvas.ids_BC
    batch, columns = ids_BC.shape
    counts = slots.context.seen[:batch]
    assert slots.context.place_T is not None
    place_T = slots.context.place_T[: sum(counts)]
    slot_T = torch.div(place_T, columns, rounding_mode="floor")
    twin_TD = hidden_TD[len(place_T) :]
    suppress_BC = (ids_BC == slots.plan.mask_id) | slots.plan.refine_B[:, None]
    suppress_T = suppress_BC.flatten().index_select(0, place_T)
    # A caption must not contain the mask token; officially it may.
    avoid_T = (~slots.plan.official_B).index_select(0, slot_T)

    rule_T = slots.canvas.rule_BC.flatten().index_select(0, place_T)
    alternatives = _alternatives(slots)

    def choose(chunk: tuple[int, int, Kind]) -> tuple[Tensor, ...]:
        first, last, (guided, hot, filling, curious) = chunk
        logits_TV = slots.context.logits(hidden_TD[first:last])
        if guided:
            without_TV = slots.context.logits(twin_TD[first:last])
            scale_T1 = slots.cfg_B.index_select(0, slot_T[first:last])[:, None] + 1
            logits_TV = without_TV + scale_T1 * (logits_TV - without_TV)
        temperature_T = uniform_TV = key_T2 = None
        if hot:
            temperature_T = slots.temperature_B.index_select(0, slot_T[first:last])
            seed_T, step_T, position_T = _places(slots, place_T[first:last])
            key_T2 = noise.keys(seed_T, step_T, position_T)
            if key_T2 is None:
                uniform_TV = noise.tokens(seed_T, step_T, position_T, logits_TV.shape[1])
        if filling:
            _obey(slots, logits_TV, rule_T[first:last])
        limits = (
            slots.suppressed_N,
            suppress_T[first:last],
            slots.plan.mask_id,
            avoid_T[first:last],
        )
        top = ops.top_tokens(logits_TV, *limits, alternatives) if curious else ()
        chosen = ops.select_tokens(logits_TV, *limits, temperature_T, uniform_TV, key_T2)
        return chosen.ids_T, chosen.log_odds_T, *top

    chunks = list(_chunks(slots, counts))
    small = ROWS_AT_LEAST * len(slots.context.embedding_VD) <= LOGITS_IN_CACHE
    together = ids_BC.device.type == "cpu" and small
    parts = spread(choose, chunks) if together else list(map(choose, chunks))
    predicted_T, log_odds_T = (torch.cat([part[n] for part in parts]) for n in range(2))
    tops = [part[2:] for part in parts if part[2:]]
    top = tuple(torch.cat(column) for column in zip(*tops, strict=True)) if tops else ()
    log_odds_BC = log_odds_T.new_zeros(ids_BC.numel()).index_copy_(0, place_T, log_odds_T)
    predicted_BC = ids_BC.flatten().index_copy(0, place_T, predicted_T)
    return predicted_BC.view(batch, columns), log_odds_BC.view(batch, columns), top


def _obey(slots: Slots, logits_TV: Tensor, rule_T: Tensor) -> None:
    """Forbid what a template's holes cannot hold: a stop, and no space where one is wanted."""
    stop = slots.stop_id
    logits_TV[:, stop] = logits_TV[:, stop].masked_fill(rule_T >= HOLE, -torch.inf)
    logits_TV.masked_fill_((rule_T == OPENING)[:, None] & ~slots.spaced_V, -torch.inf)


def _alternatives(slots: Slots) -> int:
    """The most that a request wants."""
    return max(one.alternatives for one in slots.settings)


def _score(slots: Slots, log_odds_BC: Tensor, noise: Noise) -> Tensor:
    """What positions are ranked by, [B, C]."""
    if all(one.remasking == "low_confidence" for one in slots.settings):
        return log_odds_BC
    place_T = torch.arange(log_odds_BC.numel(), device=log_odds_BC.device)
    order_BC = noise.order(*_places(slots, place_T)).view_as(log_odds_BC)
    return torch.where(slots.random_B[:, None], order_BC, log_odds_BC.double())


def _places(slots: Slots, place_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Seed, step and position of rows by their places in the flat canvases, [T] each."""
    columns = slots.canvas.ids_BC.shape[1]
    slot_T = torch.div(place_T, columns, rounding_mode="floor")
    return (
        slots.seed_B.index_select(0, slot_T),
        slots.canvas.forwards_B.index_select(0, slot_T),
        place_T - slot_T * columns,
    )


def _chunks(slots: Slots, counts: Sequence[int]) -> Iterator[tuple[int, int, Kind]]:
    """First and last row of each chunk, and of what kind its rows are.

    `counts` says how many rows each slot has.

    Slots of a kind lie side by side, so that rows of other kinds do not pay for them.
    """
    kinds = [kind_of(one) for one in slots.settings]
    edges = [i for i in range(len(kinds)) if i == 0 or kinds[i] != kinds[i - 1]]
    embedding_VD = slots.context.embedding_VD
    most = LOGITS_IN_CACHE if embedding_VD.device.type == "cpu" else LOGITS_AT_ONCE
    size = max(ROWS_AT_LEAST, most // len(embedding_VD) // ROWS_AT_LEAST * ROWS_AT_LEAST)
    begins = [0, *accumulate(counts)]
    for begin, end in pairwise([*edges, len(kinds)]):
        for first in range(begins[begin], begins[end], size):
            yield first, min(first + size, begins[end]), kinds[begin]


def _report(
    slots: Slots,
    confidence_BC: Tensor,
    broken_B: Tensor,
    top: tuple[Tensor, ...] = (),
    asked_UM: Tensor | None = None,
) -> tuple[Report, NDArray[np.float64] | None]:
    """Bring a step's outcome to the host: the report, and what choices under way asked for."""
    canvas = slots.canvas
    columns = canvas.ids_BC.shape[1]
    flags = (
        canvas.stop_B,
        canvas.sight_B,
        canvas.forwards_B,
        canvas.done_B.long(),
        broken_B.long(),
    )
    flags_B5 = torch.stack(flags, dim=1)
    packed = torch.cat((canvas.ids_BC, confidence_BC.view(torch.int64), flags_B5), dim=1)
    parts = [packed, *top, *(() if asked_UM is None else (asked_UM,))]
    flat = [one.view(torch.int64).flatten() for one in parts]
    # The step's one copy from device to host: the next batch depends on who is done.
    sent = (flat[0] if len(flat) == 1 else torch.cat(flat)).cpu().numpy()
    arrays = [
        part.reshape(one.shape)
        for part, one in zip(
            np.split(sent, list(accumulate(map(len, flat)))[:-1]), parts, strict=True
        )
    ]
    host, asked = arrays[0], None if asked_UM is None else arrays[-1].view(np.float64)
    top_ids_BCK = np.zeros((*canvas.ids_BC.shape, _alternatives(slots)), dtype=np.int64)
    top_chance_BCK = np.zeros(top_ids_BCK.shape)
    if top:
        place_T = _curious_places(slots)
        top_ids_BCK.reshape(-1, top_ids_BCK.shape[2])[place_T] = arrays[1]
        top_chance_BCK.reshape(-1, top_ids_BCK.shape[2])[place_T] = arrays[2].view(np.float64)
    report = Report(
        ids_BC=host[:, :columns],
        confidence_BC=host[:, columns : 2 * columns].copy().view(np.float64),
        stop_B=host[:, -5],
        sight_B=host[:, -4],
        forwards_B=host[:, -3],
        done_B=host[:, -2] != 0,
        broken_B=host[:, -1] != 0,
        top_ids_BCK=top_ids_BCK,
        top_chance_BCK=top_chance_BCK,
    )
    return report, asked


def _curious_places(slots: Slots) -> NDArray[np.int64]:
    """Where in the flat canvases the rows seen of those are that want alternatives."""
    columns = slots.canvas.ids_BC.shape[1]
    return np.concatenate(
        [
            slot * columns + np.arange(seen)
            for slot, (one, seen) in enumerate(
                zip(slots.settings, slots.context.seen, strict=False)
            )
            if one.alternatives
        ]
    )


def _retire(state: State, report: Report) -> State:
    """Move finished requests from the slots to the captions; broken ones have none."""
    slots = state.slots
    leaving_B = report.done_B | report.broken_B
    if slots is None or not leaving_B.any():
        return state
    captions = {
        slots.requests[slot]: state.ledger.caption(
            slot,
            slots.settings[slot],
            slots.fillings[slot],
            int(report.stop_B[slot]),
            int(report.forwards_B[slot]),
        )
        for slot in np.flatnonzero(report.done_B & ~report.broken_B).tolist()
    }
    state = replace(state, finished=state.finished | captions)
    return _keep(state, np.flatnonzero(~leaving_B).tolist())


def _narrow(state: State, report: Report) -> State:
    """With the rows that the next pass runs of each canvas; guided ones have as many twins."""
    slots = state.slots
    if slots is None or not any(one.shrinks for one in slots.settings):
        return state
    sight_B = report.sight_B[~(report.done_B | report.broken_B)].tolist()
    seen = [
        sight if one.shrinks else rows
        for one, sight, rows in zip(slots.settings, sight_B, slots.context.rows, strict=False)
    ]
    context = slots.context.seeing((*seen, *seen[: slots.guided]))
    return replace(state, slots=replace(slots, context=context))


def _keep(state: State, kept: list[int]) -> State:
    """Only the slots `kept`."""
    if state.slots is None or len(kept) == len(state.slots.requests):
        return state
    if not kept:
        return replace(state, slots=None)
    slots = state.slots.select(kept)
    ledger = state.ledger.select(kept, slots.context.columns, _alternatives(slots))
    return replace(state, slots=slots, ledger=ledger)

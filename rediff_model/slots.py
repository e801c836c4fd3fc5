"""A batch in slots: the settings of its requests as tensors, their prompts and canvases.

Shape suffixes: B requests, C canvas rows, P prompt rows, D hidden size, N suppressed ids, Q stop
sequences, L tokens of a stop sequence.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

from kernels import ops
from kernels.canvas import Canvas, Plan
from rediff_model.context import Context
from rediff_model.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rediff_model.language import LanguageModel
    from rediff_model.settings import SamplerSettings, TokenIds


@dataclass(frozen=True, slots=True)
class Slots:
    """Requests in slot order: guided ones first, and among equals those with temperature."""

    requests: tuple[int, ...]
    """Each slot's index in the call that started it."""
    settings: tuple[SamplerSettings, ...]
    plan: Plan
    canvas: Canvas
    context: Context
    suppressed_N: Tensor
    cfg_B: Tensor
    temperature_B: Tensor
    random_B: Tensor
    seed_B: Tensor

    @property
    def guided(self) -> int:
        """How many slots, from the first, have an unconditional twin in the context."""
        return sum(settings.cfg_scale > 0 for settings in self.settings)

    def select(self, kept: Sequence[int]) -> Slots:
        """The slots `kept`, in ascending order, without columns that none of them needs."""
        index_B = torch.tensor(kept, dtype=torch.int64).to(self.seed_B.device)
        twins = [len(self.settings) + slot for slot in kept if slot < self.guided]
        sequences = [*kept, *twins]
        index_S = torch.tensor(sequences, dtype=torch.int64).to(self.seed_B.device)
        context = self.context.select(sequences, index_S)
        canvas = self.canvas.select(index_B)
        rows = {
            field.name: getattr(self, field.name).index_select(0, index_B)
            for field in fields(self)
            if field.name.endswith("_B")
        }
        return replace(
            self,
            requests=tuple(self.requests[slot] for slot in kept),
            settings=tuple(self.settings[slot] for slot in kept),
            plan=self.plan.select(index_B),
            canvas=replace(canvas, ids_BC=canvas.ids_BC[:, : max(context.rows)]),
            context=context,
            **rows,
        )


def allocate(
    model: LanguageModel,
    prompts: Sequence[Tensor],
    settings: Sequence[SamplerSettings],
    ids: TokenIds,
) -> Slots:
    """Slots for prompts [P, D], one each; with prefix attention this runs the prompts.

    Raises:
        SettingsError: a draft, stop or suffix id outside the vocabulary, or an official-mode
            prompt that holds the mask embedding.
    """
    mask_D = model.model.embed_tokens.weight[ids.mask]
    for prompt_PD, chosen in zip(prompts, settings, strict=True):
        check_ids(chosen, model.model.config.vocab_size)
        if chosen.compat == "official" and bool(looks_masked(prompt_PD, mask_D).any()):
            raise SettingsError("compat official: the prompt holds a mask token")
    order = sorted(
        range(len(prompts)),
        key=lambda i: (settings[i].cfg_scale == 0, settings[i].temperature == 0),
    )
    chosen_B = tuple(settings[i] for i in order)
    device = mask_D.device
    rows = [one.canvas_length + len(one.suffix) for one in chosen_B]
    guided = [slot for slot, one in enumerate(chosen_B) if one.cfg_scale > 0]
    prompts_S = [prompts[i] for i in order]
    prompts_S += [mask_D.expand_as(prompts_S[slot]) for slot in guided]
    context = Context.build(model, prompts_S, rows + [rows[slot] for slot in guided])
    plan = _plan(chosen_B, ids, device)
    ids_BC = _first_canvases(chosen_B, ids, max(rows)).to(device)
    # Officially a stop in the draft is looked for after the first step only.
    found_B = ops.first_stop(plan, ids_BC).amin(dim=1)
    canvas = Canvas.blank(ids_BC, torch.where(plan.official_B, plan.length_B, found_B))
    seeds = [secrets.randbits(63) if one.seed is None else one.seed for one in chosen_B]
    return Slots(
        requests=tuple(order),
        settings=chosen_B,
        plan=plan,
        canvas=ops.enter_block(plan, canvas, ~canvas.done_B),
        context=context,
        suppressed_N=torch.tensor(ids.suppressed, dtype=torch.int64).to(device),
        cfg_B=torch.tensor([one.cfg_scale for one in chosen_B], dtype=mask_D.dtype).to(device),
        temperature_B=torch.tensor([one.temperature for one in chosen_B], dtype=torch.float64).to(
            device
        ),
        random_B=torch.tensor([one.remasking == "random" for one in chosen_B]).to(device),
        seed_B=torch.tensor(seeds, dtype=torch.int64).to(device),
    )


def check_ids(settings: SamplerSettings, vocabulary: int) -> None:
    """Raise SettingsError, naming the id, if a setting holds one outside the vocabulary."""
    stops = [token for sequence in settings.stop or () for token in sequence]
    given = (("draft", settings.draft or ()), ("stop", stops), ("suffix", settings.suffix))
    for name, tokens in given:
        for token in tokens:
            if not 0 <= token < vocabulary:
                raise SettingsError(f"{name} id {token} lies outside the vocabulary {vocabulary}")


def looks_masked(rows_TD: Tensor, mask_D: Tensor) -> Tensor:
    """Officially a row counts as masked when it is within 1e-5 of the mask embedding, [T]."""
    return ((rows_TD - mask_D).abs() <= 1e-5).all(dim=-1)


def _plan(settings: Sequence[SamplerSettings], ids: TokenIds, device: torch.device) -> Plan:
    """The settings as tensors."""
    stops = [one.stops(ids) for one in settings]
    lengths = [[len(sequence) for sequence in sequences] for sequences in stops]
    most = max(1, *(len(sequences) for sequences in stops))
    longest = max([1, *(length for row in lengths for length in row)])
    stops_BQL = torch.full((len(settings), most, longest), -1)
    lengths_BQ = torch.zeros((len(settings), most), dtype=torch.int64)
    for slot, sequences in enumerate(stops):
        for place, sequence in enumerate(sequences):
            stops_BQL[slot, place, : len(sequence)] = torch.tensor(sequence)
            lengths_BQ[slot, place] = len(sequence)

    def whole(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(device)

    return Plan(
        mask_id=ids.mask,
        most_blocks=max(one.blocks for one in settings),
        length_B=whole([one.canvas_length for one in settings]),
        block_length_B=whole([one.block for one in settings]),
        blocks_B=whole([one.blocks for one in settings]),
        steps_B=whole([one.steps_per_block for one in settings]),
        refine_B=torch.tensor([one.refines for one in settings]).to(device),
        refine_from_B=whole([one.refine_from for one in settings]),
        refine_fraction_B=torch.tensor(
            [one.refine_fraction or 1.0 for one in settings], dtype=torch.float64
        ).to(device),
        official_B=torch.tensor([one.compat == "official" for one in settings]).to(device),
        stops_BQL=stops_BQL.to(device),
        stop_lengths_BQ=lengths_BQ.to(device),
        stop_span_B=whole([max([0, *row]) for row in lengths]),
    )


def _first_canvases(settings: Sequence[SamplerSettings], ids: TokenIds, columns: int) -> Tensor:
    """Drafts, masks and suffixes, [B, C]; columns beyond a request's rows hold the mask id."""
    ids_BC = torch.full((len(settings), columns), ids.mask)
    for row_C, one in zip(ids_BC, settings, strict=True):
        draft = one.draft or ()
        row_C[: len(draft)] = torch.tensor(draft, dtype=torch.int64)
        end = one.canvas_length + len(one.suffix)
        row_C[one.canvas_length : end] = torch.tensor(one.suffix, dtype=torch.int64)
    return ids_BC

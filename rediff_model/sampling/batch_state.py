"""A batch in slots: the settings of its requests as tensors, their prompts and canvases.

Shape suffixes: B requests, C canvas rows, P prompt rows, D hidden size, N suppressed ids, Q stop
sequences, L tokens of a stop sequence.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from kernels import ops
from kernels.canvas import Canvas, Plan
from rediff_model.sampling.filling import Filling
from rediff_model.sampling.params import SettingsError
from rediff_model.sampling.template import Choosing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rediff_model.config import TokenIds
    from rediff_model.language import LanguageModel
    from rediff_model.runtime.prompt_cache import Context
    from rediff_model.sampling.params import SamplerSettings


@dataclass(frozen=True, slots=True)
class Slots:
    """Requests in slot order, see `kind_of`."""

    requests: tuple[int, ...]
    """The caller's number of each."""
    settings: tuple[SamplerSettings, ...]
    fillings: tuple[Filling | None, ...]
    """Of requests with a template. Until it is settled their canvas counts as done."""
    plan: Plan
    canvas: Canvas
    context: Context
    suppressed_N: Tensor
    spaced_V: Tensor
    """Which tokens begin with a space."""
    stop_id: int
    """What ends a caption by default, and no hole."""
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
        return self._arranged(kept, index_B, self.context.arrange([*kept, *twins]))

    def _arranged(self, order: Sequence[int], index_B: Tensor, context: Context) -> Slots:
        """The slots of `order`, also on the device as `index_B`, with their context."""
        canvas = self.canvas.select(index_B)
        rows: dict[str, Any] = {
            field.name: getattr(self, field.name).index_select(0, index_B)
            for field in fields(self)
            if field.name.endswith("_B")
        }
        return replace(
            self,
            requests=tuple(self.requests[slot] for slot in order),
            settings=tuple(self.settings[slot] for slot in order),
            fillings=tuple(self.fillings[slot] for slot in order),
            plan=self.plan.select(index_B),
            canvas=replace(
                canvas,
                ids_BC=canvas.ids_BC[:, : context.columns],
                rule_BC=canvas.rule_BC[:, : context.columns],
            ),
            context=context,
            **rows,
        )

    def merge(self, new: Slots) -> Slots:
        """Both, in slot order. The context of `new` holds the sequences of both already."""
        olds, guided = len(self.requests), self.guided
        settings = (*self.settings, *new.settings)
        order = _slot_order(settings)
        sequences = [slot + (guided if slot >= olds else 0) for slot in order]
        twins = [
            olds + slot if slot < olds else guided + len(new.requests) + slot
            for slot in order
            if settings[slot].cfg_scale > 0
        ]
        context = new.context.arrange([*sequences, *twins])
        rows: dict[str, Any] = {
            field.name: torch.cat((getattr(self, field.name), getattr(new, field.name)))
            for field in fields(self)
            if field.name.endswith("_B")
        }
        both = replace(
            self,
            requests=(*self.requests, *new.requests),
            settings=settings,
            fillings=(*self.fillings, *new.fillings),
            plan=self.plan.join(new.plan),
            canvas=self.canvas.join(new.canvas, self.plan.mask_id),
            **rows,
        )
        index_B = torch.tensor(order, dtype=torch.int64).to(self.seed_B.device)
        return both._arranged(order, index_B, context)


def kind_of(settings: SamplerSettings) -> tuple[bool, bool, bool, bool]:
    """Whether a request is guided, has temperature, a template, and wants alternatives: what its
    rows cost behind the LM head."""
    return (
        settings.cfg_scale > 0,
        settings.temperature > 0,
        settings.template is not None,
        settings.alternatives > 0,
    )


def _slot_order(settings: Sequence[SamplerSettings]) -> list[int]:
    """Requests of a kind side by side, guided ones first; else as they are."""
    return sorted(range(len(settings)), key=lambda i: kind_of(settings[i]), reverse=True)


def allocate(
    model: LanguageModel,
    requests: Sequence[int],
    prompts: Sequence[Tensor],
    settings: Sequence[SamplerSettings],
    ids: TokenIds,
    context: Context,
) -> Slots:
    """Slots for prompts [P, D], one each; with prefix attention this runs the prompts.

    Their context is `context` with their sequences behind its own.

    Raises:
        SettingsError: a draft, stop or suffix id outside the vocabulary, or an official-mode
            prompt that holds the mask embedding.
    """
    mask_D = model.model.embed_tokens.weight[ids.mask]
    for prompt_PD, chosen in zip(prompts, settings, strict=True):
        check_ids(chosen, model.model.config.vocab_size)
        if chosen.compat == "official" and bool(looks_masked(prompt_PD, mask_D).any()):
            raise SettingsError("compat official: the prompt holds a mask token")
    order = _slot_order(settings)
    chosen_B = tuple(settings[i] for i in order)
    device = mask_D.device
    rows = [one.canvas_length + len(one.suffix) for one in chosen_B]
    guided = [slot for slot, one in enumerate(chosen_B) if one.cfg_scale > 0]
    prompts_S = [prompts[i] for i in order]
    prompts_S += [mask_D.expand_as(prompts_S[slot]) for slot in guided]
    plan = _plan(chosen_B, ids, device)
    fillings = tuple(
        None if one.template is None else Filling.of(Choosing(one.template), ids)
        for one in chosen_B
    )
    ids_BC, rule_BC = (
        rows_BC.to(device) for rows_BC in _first_canvases(chosen_B, fillings, ids, max(rows))
    )
    # Officially a stop in the draft is looked for after the first step only.
    found_B = ops.first_stop(plan, ids_BC).amin(dim=1)
    stop_B = torch.where(plan.official_B, plan.length_B, found_B)
    canvas = Canvas.blank(ids_BC, stop_B, plan.length_B, rule_BC)
    closed_B = torch.tensor([filling is not None and not filling.fills for filling in fillings])
    canvas = replace(canvas, done_B=closed_B.to(device))
    spaced_V = torch.zeros(model.model.config.vocab_size, dtype=torch.bool)
    spaced_V[list(ids.spaced)] = True
    seeds = [secrets.randbits(63) if one.seed is None else one.seed for one in chosen_B]
    return Slots(
        requests=tuple(requests[i] for i in order),
        settings=chosen_B,
        fillings=fillings,
        plan=plan,
        canvas=ops.enter_block(plan, canvas, ~canvas.done_B),
        context=context.join(model, prompts_S, rows + [rows[slot] for slot in guided]),
        suppressed_N=torch.tensor(ids.suppressed, dtype=torch.int64).to(device),
        spaced_V=spaced_V.to(device),
        stop_id=ids.stop,
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
    template = () if settings.template is None else settings.template.ids
    given = (
        ("draft", settings.draft or ()),
        ("stop", stops),
        ("suffix", settings.suffix),
        ("template", template),
    )
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

    def real(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).to(device)

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
        refine_fraction_B=real([one.refine_fraction or 1.0 for one in settings]),
        least_B=whole([one.least_revealed for one in settings]),
        reveal_above_B=real([_log_odds(one.reveal_threshold, math.inf) for one in settings]),
        end_above_B=real([_log_odds(one.end_threshold, math.inf) for one in settings]),
        edit_above_B=real([_log_odds(one.edit_threshold, -math.inf) for one in settings]),
        extra_B=whole([one.extra_steps for one in settings]),
        shrinks_B=torch.tensor([one.shrinks for one in settings]).to(device),
        official_B=torch.tensor([one.compat == "official" for one in settings]).to(device),
        stops_BQL=stops_BQL.to(device),
        stop_lengths_BQ=lengths_BQ.to(device),
        stop_span_B=whole([max([0, *row]) for row in lengths]),
    )


def _log_odds(probability: float | None, default: float) -> float:
    """log p/(1-p)."""
    if probability is None:
        return default
    if probability in (0, 1):
        return -math.inf if probability == 0 else math.inf
    return math.log(probability) - math.log1p(-probability)


def _first_canvases(
    settings: Sequence[SamplerSettings],
    fillings: Sequence[Filling | None],
    ids: TokenIds,
    columns: int,
) -> tuple[Tensor, Tensor]:
    """Drafts, templates, masks and suffixes, and the rules of templates, [B, C] each.

    Columns beyond a request's rows hold the mask id and no rule.
    """
    ids_BC = torch.full((len(settings), columns), ids.mask)
    rule_BC = torch.zeros_like(ids_BC)
    for row_C, rule_C, one, filling in zip(ids_BC, rule_BC, settings, fillings, strict=True):
        draft = one.draft or ()
        row_C[: len(draft)] = torch.tensor(draft, dtype=torch.int64)
        end = one.canvas_length + len(one.suffix)
        row_C[one.canvas_length : end] = torch.tensor(one.suffix, dtype=torch.int64)
        if filling is not None:
            row_C[: one.canvas_length] = torch.tensor(filling.trial.ids)
            rule_C[: one.canvas_length] = filling.rules()
    return ids_BC, rule_BC

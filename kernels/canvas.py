"""Slot tensors of the refining step: what is fixed a request, and what a step moves.

Shape suffixes: B requests, C canvas positions, Q stop sequences, L tokens of a stop sequence,
H remembered canvases.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import torch

if TYPE_CHECKING:
    from torch import Tensor

SIGHT = 8
"""Rows of a shrunk canvas are a multiple of this, so that its size changes rarely."""

FIXED, HOLE, OPENING = 1, 2, 3
"""Rules of a template's positions: never written; filled, but not with a stop; the same, and only
with a token that begins with a space. 0 is no rule."""

REMEMBERED = 8
"""Canvases remembered to detect a cycle: the longest period that is seen."""


@dataclass(frozen=True, slots=True)
class _Slots:
    def select(self, index_B: Tensor) -> Self:
        """The slots of `index_B`, in that order."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen = {
            name: value.index_select(0, index_B)
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **chosen)

    def _joined(self, new: Self, ids: int = 0) -> dict[str, Any]:
        """The rows of both, one behind the other; shorter ones are filled up with 0, or `ids`."""
        joined = {}
        for field in fields(self):
            one, two = getattr(self, field.name), getattr(new, field.name)
            fill = ids if field.name == "ids_BC" else 0
            if isinstance(one, torch.Tensor):
                sizes = [max(pair) for pair in zip(one.shape[1:], two.shape[1:], strict=True)]
                joined[field.name] = torch.cat((_grow(one, sizes, fill), _grow(two, sizes, fill)))
        return joined


@dataclass(frozen=True, slots=True)
class Plan(_Slots):
    """What stays fixed while a request runs. The sampler fills it from the settings."""

    mask_id: int
    most_blocks: int
    """The largest of `blocks_B`."""
    length_B: Tensor
    """Tokens of the answer; columns beyond it are suffix and padding."""
    block_length_B: Tensor
    blocks_B: Tensor
    steps_B: Tensor
    """Steps of a block."""
    refine_B: Tensor
    refine_from_B: Tensor
    """First step of a block that refines."""
    refine_fraction_B: Tensor
    """Float64; 1 is all."""
    least_B: Tensor
    """Positions that a step reveals at least."""
    reveal_above_B: Tensor
    """Positions whose log-odds are above this are revealed too. Float64; inf is none."""
    end_above_B: Tensor
    """Predicted stops whose log-odds are above this are revealed beside the schedule. Float64; inf
    is none."""
    edit_above_B: Tensor
    """Log-odds that a prediction must exceed to replace a token. Float64; -inf is always."""
    extra_B: Tensor
    """Steps that only refine, at most, after the last mask of a block."""
    shrinks_B: Tensor
    """Whether rows behind a settled stop leave the forward pass."""
    official_B: Tensor
    stops_BQL: Tensor
    stop_lengths_BQ: Tensor
    """0 where a request has fewer sequences than others."""
    stop_span_B: Tensor
    """The longest of a request's stop sequences."""

    def join(self, new: Plan) -> Plan:
        """The requests of both."""
        most = max(self.most_blocks, new.most_blocks)
        # A stop sequence of length 0 is none.
        return replace(self, most_blocks=most, **self._joined(new))


@dataclass(frozen=True, slots=True)
class Canvas(_Slots):
    """What a step moves. `refine_canvas` returns the next one."""

    ids_BC: Tensor
    rule_BC: Tensor
    """What a template says of each position, see `FIXED`; 0 without one."""
    block_B: Tensor
    """The current block; -1 before the first."""
    step_B: Tensor
    """Steps done in the block."""
    block_masks_B: Tensor
    """Masks in the block when it was entered."""
    stop_B: Tensor
    """Where the stop is; the answer's length if there is none."""
    sight_B: Tensor
    """Positions from here on take no part in the next forward pass; the answer's length if all
    do."""
    polish_B: Tensor
    """The block was complete when it was entered: it is over when nothing new comes."""
    refined_B: Tensor
    """Steps of the block that began without a mask before the stop."""
    seen_BH: Tensor
    """Fingerprints of the block's canvases."""
    forwards_B: Tensor
    done_B: Tensor

    @classmethod
    def blank(
        cls, ids_BC: Tensor, stop_B: Tensor, length_B: Tensor, rule_BC: Tensor | None = None
    ) -> Canvas:
        """Canvases that have not entered a block."""
        zero_B = torch.zeros_like(stop_B)
        return cls(
            ids_BC=ids_BC,
            rule_BC=torch.zeros_like(ids_BC) if rule_BC is None else rule_BC,
            block_B=zero_B - 1,
            step_B=zero_B,
            block_masks_B=zero_B,
            stop_B=stop_B,
            sight_B=length_B,
            polish_B=zero_B.bool(),
            refined_B=zero_B,
            seen_BH=zero_B.new_full((len(zero_B), REMEMBERED), -1),
            forwards_B=zero_B,
            done_B=zero_B.bool(),
        )

    def join(self, new: Canvas, mask_id: int) -> Canvas:
        """The requests of both."""
        return replace(self, **self._joined(new, ids=mask_id))


def _grow(rows: Tensor, sizes: list[int], fill: int) -> Tensor:
    """`rows` with the other dimensions filled up at their ends."""
    if list(rows.shape[1:]) == sizes:
        return rows
    grown = rows.new_full((len(rows), *sizes), fill)
    grown[(slice(None), *(slice(size) for size in rows.shape[1:]))] = rows
    return grown


@dataclass(frozen=True, slots=True)
class Written:
    """What one step did."""

    revealed_BC: Tensor
    revised_BC: Tensor
    """Rewritten, also with the same id."""
    count_B: Tensor
    """Positions that the schedule asked for."""
    bound_B: Tensor
    """Positions from here on were not open."""

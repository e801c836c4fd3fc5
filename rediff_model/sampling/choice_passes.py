"""Templates in a batch: the passes that compare choices, and the canvases that follow from them.

Shape suffixes: B requests, C canvas rows, D hidden size, V vocabulary, U requests whose choices
are compared, G the guided ones of them, R rows of both and of their twins, M tokens that a pass
asks for.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from kernels import ops
from rediff_model.sampling.filling import Filling

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from rediff_model.config import TokenIds
    from rediff_model.sampling.batch_state import Slots
    from rediff_model.sampling.ledger import Ledger, Report


def ask(slots: Slots, hidden_TD: Tensor) -> Tensor | None:
    """Log-probabilities of the tokens that choices under way ask for, [U, M] float64; None without
    such requests."""
    asking = [
        (slot, one)
        for slot, one in enumerate(slots.fillings)
        if one is not None and not one.settled
    ]
    if not asking:
        return None
    begins = [0, *accumulate(slots.context.seen[: len(slots.requests)])]
    rows = [begins[slot] + one.choosing.position(one.trial) for slot, one in asking]
    guided = [row for (slot, _), row in zip(asking, rows, strict=True) if slot < slots.guided]
    device = hidden_TD.device
    hidden_RD = hidden_TD.index_select(
        0, torch.tensor([*rows, *(begins[-1] + row for row in guided)]).to(device)
    )
    logits_RV = slots.context.logits(hidden_RD).double()
    logits_UV, without_GV = logits_RV[: len(rows)], logits_RV[len(rows) :]
    if guided:
        # Guided slots come first.
        scale_G1 = (
            slots.cfg_B[: slots.guided].index_select(
                0, torch.tensor([slot for slot, _ in asking[: len(guided)]]).to(device)
            )[:, None]
            + 1
        )
        with_GV = without_GV + scale_G1 * (logits_UV[: len(guided)] - without_GV)
        logits_UV = torch.cat((with_GV, logits_UV[len(guided) :]))
    logits_UV = logits_UV.index_fill(1, slots.suppressed_N, -torch.inf)
    tokens = [one.choosing.next_pass.tokens for _, one in asking]
    most = max(map(len, tokens))
    tokens_UM = torch.tensor([[*one, *one[:1] * (most - len(one))] for one in tokens]).to(device)
    return logits_UV.log_softmax(dim=1).gather(1, tokens_UM)


def choose(
    slots: Slots,
    ledger: Ledger,
    report: Report,
    chances_UM: NDArray[np.float64] | None,
    ids: TokenIds,
) -> tuple[Slots, Ledger, Report]:
    """Take what a pass gave to choices under way, None if there was none.

    Returns slots with their next canvases, the ledger before the step with what canvases say after
    it, so that a choice is no change of a token, and the report in the request's terms: passes
    count as steps, and whoever has a choice to make is not done.
    """
    templates = {slot: one for slot, one in enumerate(slots.fillings) if one is not None}
    if not templates:
        return slots, ledger, report
    moved: dict[int, Filling] = {}
    if chances_UM is not None:
        asking = [slot for slot, one in templates.items() if not one.settled]
        for slot, chance_M in zip(asking, chances_UM.tolist(), strict=True):
            choosing = templates[slot].choosing
            count = len(choosing.next_pass.tokens)
            moved[slot] = Filling.of(choosing.after(chance_M[:count]), ids)
        slots = _advanced(slots, moved)
    done_B, ids_BC, stop_B = report.done_B.copy(), report.ids_BC.copy(), report.stop_B.copy()
    forwards_B = report.forwards_B.copy()
    for slot, one in (templates | moved).items():
        forwards_B[slot] += one.choosing.passed
        if slot in moved or not one.settled:
            ids_BC[slot, : len(one.layout.ids)] = one.layout.ids
            stop_B[slot] = one.layout.end
            done_B[slot] = one.settled and not one.fills
    report = replace(report, ids_BC=ids_BC, stop_B=stop_B, done_B=done_B, forwards_B=forwards_B)
    return slots, ledger.placed(moved), report


def _advanced(slots: Slots, fillings: Mapping[int, Filling]) -> Slots:
    """With the fillings of some slots, by slot: their next canvases to compare choices on, or
    those that are filled from now on."""
    device = slots.seed_B.device
    index_U = torch.tensor(list(fillings), dtype=torch.int64).to(device)
    canvas, columns = slots.canvas, slots.canvas.ids_BC.shape[1]
    ids_UC = torch.full((len(fillings), columns), slots.plan.mask_id)
    rule_UC = torch.zeros_like(ids_UC)
    for row_C, rule_C, filling in zip(ids_UC, rule_UC, fillings.values(), strict=True):
        row_C[: len(filling.trial.ids)] = torch.tensor(filling.trial.ids)
        rule_C[: len(filling.trial.ids)] = filling.rules()
    end_U = torch.tensor([filling.layout.end for filling in fillings.values()])
    open_B = torch.zeros_like(canvas.done_B).index_copy(
        0, index_U, torch.tensor([filling.fills for filling in fillings.values()]).to(device)
    )
    canvas = replace(
        canvas,
        ids_BC=canvas.ids_BC.index_copy(0, index_U, ids_UC.to(device)),
        rule_BC=canvas.rule_BC.index_copy(0, index_U, rule_UC.to(device)),
        stop_B=canvas.stop_B.index_copy(0, index_U, end_U.to(device)),
        done_B=canvas.done_B & ~open_B,
    )
    return replace(
        slots,
        canvas=ops.enter_block(slots.plan, canvas, open_B),
        fillings=tuple(fillings.get(slot, one) for slot, one in enumerate(slots.fillings)),
    )

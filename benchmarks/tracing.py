"""Why two samplers disagree: the first step at which they part, and how close the call was.

Shape suffixes: P prompt rows, D hidden size, C canvas rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rediff_model.sampling import reference, sampler

if TYPE_CHECKING:
    from torch import Tensor

    from rediff_model.model import Captioner
    from rediff_model.sampling.ledger import StepEvents
    from rediff_model.sampling.outputs import StepEvent
    from rediff_model.sampling.params import SamplerSettings
    from rediff_model.sampling.reference import StepRecord


@dataclass(frozen=True, slots=True)
class Difference:
    """A caption that is not the same on both sides."""

    request: int
    step: int
    """The first one at whose end the canvases differ, from 1; 0 when they do not differ when the
    request runs alone: then the products of a batch rounded another way."""
    margin: float
    """Difference of the probabilities between which the sides decided differently."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def trace_difference(
    captioner: Captioner, prompt_PD: Tensor, settings: SamplerSettings, request: int
) -> Difference:
    """Run both sides once more, watching every step, with neighbours as in a batch."""
    records: list[StepRecord] = []
    reference.generate(
        captioner.model, prompt_PD, settings, captioner.token_ids, on_step=records.append
    )
    events: list[StepEvent] = []

    def keep(step: StepEvents) -> None:
        events.extend(event for event in step if event.request == 0)

    neighbours = [prompt_PD, *(prompt_PD.flip(0) for _ in range(15))]
    for prompts in (neighbours, neighbours[:1]):
        events.clear()
        sampler.generate(
            captioner.model, prompts, [settings] * len(prompts), captioner.token_ids, keep
        )
        for record, event in zip(records, events, strict=False):
            if tuple(record.after_C.tolist()) != event.canvas:
                return Difference(request, event.step, margin(record, event))
    return Difference(request, 0, 0.0)


def margin(record: StepRecord, event: StepEvent) -> float:
    """How far apart the two decisions were at a step which began with equal canvases.

    Each side took what it found best, so the difference between what the sides saw in their own
    choices bounds what each saw between the two choices, up to rounding.
    """
    first = len(record.masked_N) - len(record.after_C)
    score = record.score_N[first:].tolist()
    wrote = {change.position: change for change in event.changed}
    ours = {place: change for place, change in wrote.items() if change.kind == "reveal"}
    theirs = {row - first for row in record.revealed}
    swapped = [ours[place].confidence for place in ours.keys() - theirs]
    missed = [score[place] for place in theirs - ours.keys()]
    gaps = [abs(one - two) for one, two in zip(sorted(swapped), sorted(missed), strict=False)]
    after = record.after_C.tolist()
    gaps += [
        abs(change.confidence - score[place])
        for place, change in wrote.items()
        if change.id != after[place] and (place in theirs or change.kind == "revise")
    ]
    return max(gaps, default=0.0)

"""The host's copy of what the canvases say: events of a step and finished captions.

Shape suffixes: B requests, C canvas rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rediff_model.sampling.outputs import Change, Generation, StepEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from rediff_model.sampling.params import SamplerSettings


@dataclass(frozen=True, slots=True)
class Report:
    """What one step hands from the device to the host."""

    ids_BC: NDArray[np.int64]
    confidence_BC: NDArray[np.float64]
    """Of positions written in the step; NaN elsewhere."""
    stop_B: NDArray[np.int64]
    sight_B: NDArray[np.int64]
    """How far the next pass looks, see `Canvas.sight_B`."""
    forwards_B: NDArray[np.int64]
    done_B: NDArray[np.bool_]
    broken_B: NDArray[np.bool_]
    """Logits were not finite: what was written means nothing."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """Canvases after the last step, with the history that captions report."""

    mask_id: int
    ids_BC: NDArray[np.int64]
    confidence_BC: NDArray[np.float64]
    revisions_BC: NDArray[np.int64]

    @classmethod
    def open(cls, mask_id: int, ids_BC: NDArray[np.int64]) -> Ledger:
        return cls(mask_id, ids_BC, np.zeros(ids_BC.shape), np.zeros_like(ids_BC))

    def record(self, report: Report) -> Ledger:
        """The ledger after a step."""
        written_BC = ~np.isnan(report.confidence_BC)
        revised_BC = (self.ids_BC != self.mask_id) & (report.ids_BC != self.ids_BC)
        return Ledger(
            self.mask_id,
            report.ids_BC,
            np.where(written_BC, report.confidence_BC, self.confidence_BC),
            self.revisions_BC + revised_BC,
        )

    def select(self, kept: Sequence[int], columns: int) -> Ledger:
        """The slots `kept`, without columns that none of them needs."""
        index = list(kept)
        return Ledger(
            self.mask_id,
            self.ids_BC[index, :columns],
            self.confidence_BC[index, :columns],
            self.revisions_BC[index, :columns],
        )

    def join(self, ids_BC: NDArray[np.int64], origin: Sequence[int]) -> Ledger:
        """The ledger of canvases `ids_BC` of which each was slot `origin` here; -1 is none."""
        joined = Ledger.open(self.mask_id, ids_BC)
        slots = [slot for slot, old in enumerate(origin) if old >= 0]
        olds = [old for old in origin if old >= 0]
        columns = min(ids_BC.shape[1], self.ids_BC.shape[1])
        joined.confidence_BC[slots, :columns] = self.confidence_BC[olds, :columns]
        joined.revisions_BC[slots, :columns] = self.revisions_BC[olds, :columns]
        return joined

    def caption(self, slot: int, settings: SamplerSettings, stop: int, steps: int) -> Generation:
        """The finished caption of a slot."""
        length = settings.canvas_length
        canvas = tuple(self.ids_BC[slot, :length].tolist())
        revisions = tuple(self.revisions_BC[slot, :length].tolist())
        return Generation(
            ids=canvas[:stop],
            canvas=canvas,
            steps=steps,
            revisions=sum(revisions),
            confidences=tuple(self.confidence_BC[slot, :length].tolist()),
            revision_counts=revisions,
            finish_reason="stop" if stop < length else "length",
        )


@dataclass(frozen=True, slots=True)
class StepEvents:
    """One step of a batch; iterate for an event a request, made when asked for."""

    requests: tuple[int, ...]
    settings: tuple[SamplerSettings, ...]
    before: Ledger
    after: Ledger
    report: Report
    finished: dict[int, Generation]
    """Captions done with this step, by request."""
    broken: tuple[int, ...]
    """Requests whose logits were not finite; they have left without a caption."""

    def __iter__(self) -> Iterator[StepEvent]:
        for slot, (request, settings) in enumerate(zip(self.requests, self.settings, strict=True)):
            length = settings.canvas_length
            was_C, now_C = self.before.ids_BC[slot, :length], self.after.ids_BC[slot, :length]
            mask = self.after.mask_id
            changed = tuple(
                Change(
                    position=place,
                    id=int(now_C[place]),
                    confidence=float(self.after.confidence_BC[slot, place]),
                    kind="reveal" if was_C[place] == mask else "revise",
                    was=int(was_C[place]),
                )
                for place in np.flatnonzero(was_C != now_C).tolist()
            )
            yield StepEvent(
                request=request,
                step=int(self.report.forwards_B[slot]),
                steps=settings.planned_steps,
                masked=int((now_C == mask).sum()),
                changed=changed,
                canvas=tuple(now_C.tolist()),
                done=bool(self.report.done_B[slot]),
            )

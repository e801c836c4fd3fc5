"""The host's copy of what the canvases say: events of a step and finished captions.

Shape suffixes: B requests, C canvas rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.canvas import REMEMBERED
from rediff_model.sampling.outputs import LEAST, LEVEL, Change, Generation, StepEvent

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
    stop_B: NDArray[np.int64]
    confidence_BC: NDArray[np.float64]
    revisions_BC: NDArray[np.int64]
    flips_BC: NDArray[np.int64]
    """Revisions that brought back the token before the last one."""
    written_BC: NDArray[np.int64]
    """The step in which a position took its value."""
    was_BC: NDArray[np.int64]
    """The token before the last revision; -1 is none."""
    past: tuple[Ledger, ...] = ()
    """The ledgers before this one with the same slots, the latest last, themselves without past.
    Of a request that joined later the older ones say nothing."""

    @classmethod
    def open(cls, mask_id: int, ids_BC: NDArray[np.int64], stop_B: NDArray[np.int64]) -> Ledger:
        none_BC = np.zeros_like(ids_BC)
        sure_BC = np.zeros(ids_BC.shape)
        return cls(mask_id, ids_BC, stop_B, sure_BC, none_BC, none_BC, none_BC, none_BC - 1)

    def record(self, report: Report) -> Ledger:
        """The ledger after a step."""
        changed_BC = report.ids_BC != self.ids_BC
        revised_BC = (self.ids_BC != self.mask_id) & changed_BC
        unwritten_BC = np.isnan(report.confidence_BC)
        return Ledger(
            self.mask_id,
            report.ids_BC,
            report.stop_B,
            np.where(unwritten_BC, self.confidence_BC, report.confidence_BC),
            self.revisions_BC + revised_BC,
            self.flips_BC + (revised_BC & (report.ids_BC == self.was_BC)),
            np.where(changed_BC, report.forwards_B[:, None], self.written_BC),
            np.where(revised_BC, self.ids_BC, self.was_BC),
            (*self.past, replace(self, past=()))[-REMEMBERED:],
        )

    def ended(self, report: Report, settings: Sequence[SamplerSettings]) -> Report:
        """The report with the surest canvas of a cycle for requests that end by closing one.

        The last step, which began without a mask before the stop, brought back one of the last
        canvases. The surest has the largest product of its tokens' confidences, stop included.
        """
        chosen: dict[int, Ledger] = {}
        last = self.record(report)
        for slot in np.flatnonzero(report.done_B & ~report.broken_B).tolist():
            one, length = settings[slot], settings[slot].canvas_length
            if one.compat == "official" or self.mask_id in self.ids_BC[slot, : self.stop_B[slot]]:
                continue
            recent = last.past[-int(report.forwards_B[slot]) :]
            best = last
            members: list[Ledger] = []
            for past in reversed(recent):
                if np.array_equal(past.ids_BC[slot, :length], last.ids_BC[slot, :length]):
                    best = _surest(last, members, slot, length)
                    break
                members.append(past)
            if best is not last:
                chosen[slot] = best
        if not chosen:
            return report
        ids_BC, confidence_BC = report.ids_BC.copy(), report.confidence_BC.copy()
        stop_B = report.stop_B.copy()
        for slot, best in chosen.items():
            columns = best.ids_BC.shape[1]
            ids_BC[slot, :columns] = best.ids_BC[slot]
            confidence_BC[slot, :columns] = best.confidence_BC[slot]
            stop_B[slot] = best.stop_B[slot]
        return replace(report, ids_BC=ids_BC, confidence_BC=confidence_BC, stop_B=stop_B)

    def joint(self, slot: int, length: int) -> float:
        """Logarithm of the product of a slot's confidences up to its stop."""
        sure_C = self.confidence_BC[slot, : min(int(self.stop_B[slot]) + 1, length)]
        return float(np.log(np.maximum(sure_C, LEAST)).sum())

    def select(self, kept: Sequence[int], columns: int) -> Ledger:
        """The slots `kept`, without columns that none of them needs."""
        index = list(kept)
        rows: dict[str, Any] = {
            name: values[index, :columns] if name.endswith("_BC") else values[index]
            for name, values in self._arrays()
        }
        past = tuple(one.select(kept, columns) for one in self.past)
        return replace(self, **rows, past=past)

    def join(
        self, ids_BC: NDArray[np.int64], stop_B: NDArray[np.int64], origin: Sequence[int]
    ) -> Ledger:
        """The ledger of canvases `ids_BC` of which each was slot `origin` here; -1 is none."""
        slots = [slot for slot, old in enumerate(origin) if old >= 0]
        olds = [old for old in origin if old >= 0]

        def joined(old: Ledger) -> Ledger:
            blank = Ledger.open(self.mask_id, ids_BC, stop_B)
            rows: dict[str, Any] = {name: values.copy() for name, values in blank._arrays()}
            columns = min(ids_BC.shape[1], old.ids_BC.shape[1])
            for name, values in old._arrays():
                if name.endswith("_BC"):
                    rows[name][slots, :columns] = values[olds, :columns]
                else:
                    rows[name][slots] = values[olds]
            return replace(blank, **rows)

        return replace(joined(self), past=tuple(map(joined, self.past)))

    def _arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """What has a row a slot, by name."""
        for field in fields(self):
            if field.name.endswith(("_B", "_BC")):
                yield field.name, getattr(self, field.name)

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
            flips=int(self.flips_BC[slot, :length].sum()),
            step_map=tuple(self.written_BC[slot, :length].tolist()),
            finish_reason="stop" if stop < length else "length",
        )


def _surest(last: Ledger, others: Sequence[Ledger], slot: int, length: int) -> Ledger:
    """The ledger whose canvas is the surest in a slot; among like ones the first given."""
    best = last
    for one in others:
        if one.joint(slot, length) > best.joint(slot, length) + LEVEL:
            best = one
    return best


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

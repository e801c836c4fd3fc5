"""The host's copy of what the canvases say: events of a step and finished captions.

Shape suffixes: B requests, C canvas rows, K alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.canvas import REMEMBERED
from rediff_model.sampling.outputs import (
    LEAST,
    LEVEL,
    Alternative,
    Change,
    Generation,
    StepEvent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from rediff_model.sampling.filling import Filling
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
    top_ids_BCK: NDArray[np.int64]
    top_chance_BCK: NDArray[np.float64]
    """The likeliest tokens of requests that want alternatives; a chance of 0 is none."""


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
    top_ids_BCK: NDArray[np.int64]
    """Alternatives when the confidence was taken."""
    top_chance_BCK: NDArray[np.float64]
    past: tuple[Ledger, ...] = ()
    """The ledgers before this one with the same slots, the latest last, themselves without past.
    Of a request that joined later the older ones say nothing."""

    @classmethod
    def open(
        cls,
        mask_id: int,
        ids_BC: NDArray[np.int64],
        stop_B: NDArray[np.int64],
        alternatives: int = 0,
    ) -> Ledger:
        none_BC = np.zeros_like(ids_BC)
        sure_BC = np.zeros(ids_BC.shape)
        top_BCK = np.zeros((*ids_BC.shape, alternatives))
        return cls(
            mask_id,
            ids_BC,
            stop_B,
            sure_BC,
            none_BC,
            none_BC,
            none_BC,
            none_BC - 1,
            top_BCK.astype(np.int64),
            top_BCK,
        )

    def record(self, report: Report) -> Ledger:
        """The ledger after a step."""
        changed_BC = report.ids_BC != self.ids_BC
        revised_BC = (self.ids_BC != self.mask_id) & changed_BC
        unwritten_BC = np.isnan(report.confidence_BC)
        unwritten_BC1 = unwritten_BC[..., None]
        return Ledger(
            self.mask_id,
            report.ids_BC,
            report.stop_B,
            np.where(unwritten_BC, self.confidence_BC, report.confidence_BC),
            self.revisions_BC + revised_BC,
            self.flips_BC + (revised_BC & (report.ids_BC == self.was_BC)),
            np.where(changed_BC, report.forwards_B[:, None], self.written_BC),
            np.where(revised_BC, self.ids_BC, self.was_BC),
            np.where(unwritten_BC1, self.top_ids_BCK, report.top_ids_BCK),
            np.where(unwritten_BC1, self.top_chance_BCK, report.top_chance_BCK),
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
        top_ids_BCK, top_chance_BCK = report.top_ids_BCK.copy(), report.top_chance_BCK.copy()
        for slot, best in chosen.items():
            columns = best.ids_BC.shape[1]
            ids_BC[slot, :columns] = best.ids_BC[slot]
            confidence_BC[slot, :columns] = best.confidence_BC[slot]
            top_ids_BCK[slot, :columns] = best.top_ids_BCK[slot]
            top_chance_BCK[slot, :columns] = best.top_chance_BCK[slot]
            stop_B[slot] = best.stop_B[slot]
        return replace(
            report,
            ids_BC=ids_BC,
            confidence_BC=confidence_BC,
            stop_B=stop_B,
            top_ids_BCK=top_ids_BCK,
            top_chance_BCK=top_chance_BCK,
        )

    def placed(self, fillings: Mapping[int, Filling]) -> Ledger:
        """With the canvases of templates whose choices are under way, or made just now, by slot."""
        if not fillings:
            return self
        changed: dict[str, Any] = {name: values.copy() for name, values in self._arrays()}
        for slot, filling in fillings.items():
            layout = filling.layout
            length = len(layout.ids)
            changed["ids_BC"][slot, :length] = layout.ids
            changed["stop_B"][slot] = layout.end
            if filling.settled:
                confidences, steps = filling.choosing.start(layout)
                changed["confidence_BC"][slot, :length] = confidences
                changed["written_BC"][slot, :length] = steps
        return replace(self, **changed)

    def joint(self, slot: int, length: int) -> float:
        """Logarithm of the product of a slot's confidences up to its stop."""
        sure_C = self.confidence_BC[slot, : min(int(self.stop_B[slot]) + 1, length)]
        return float(np.log(np.maximum(sure_C, LEAST)).sum())

    def select(self, kept: Sequence[int], columns: int, alternatives: int) -> Ledger:
        """The slots `kept`, without columns and alternatives that none of them needs."""
        index = list(kept)
        shape = (slice(columns), slice(alternatives))
        rows: dict[str, Any] = {
            name: values[index][(slice(None), *shape[: values.ndim - 1])]
            for name, values in self._arrays()
        }
        past = tuple(one.select(kept, columns, alternatives) for one in self.past)
        return replace(self, **rows, past=past)

    def join(
        self,
        ids_BC: NDArray[np.int64],
        stop_B: NDArray[np.int64],
        origin: Sequence[int],
        alternatives: int,
    ) -> Ledger:
        """The ledger of canvases `ids_BC` of which each was slot `origin` here; -1 is none."""
        slots = [slot for slot, old in enumerate(origin) if old >= 0]
        olds = [old for old in origin if old >= 0]

        def joined(old: Ledger) -> Ledger:
            blank = Ledger.open(self.mask_id, ids_BC, stop_B, alternatives)
            rows: dict[str, Any] = {name: values.copy() for name, values in blank._arrays()}
            for name, values in old._arrays():
                sizes = zip(rows[name].shape[1:], values.shape[1:], strict=True)
                shared: Any = tuple(slice(min(pair)) for pair in sizes)
                rows[name][(slots, *shared)] = values[(olds, *shared)]
            return replace(blank, **rows)

        return replace(joined(self), past=tuple(map(joined, self.past)))

    def _arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """What has a row a slot, by name."""
        for field in fields(self):
            if field.name.endswith(("_B", "_BC", "_BCK")):
                yield field.name, getattr(self, field.name)

    def caption(
        self,
        slot: int,
        settings: SamplerSettings,
        filling: Filling | None,
        stop: int,
        steps: int,
    ) -> Generation:
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
            holes=() if filling is None else filling.choosing.filled(filling.layout),
            alternatives=self._alternatives(slot, length, settings.alternatives),
        )

    def _alternatives(
        self, slot: int, length: int, count: int
    ) -> tuple[tuple[Alternative, ...], ...]:
        """Of each position, up to `count`; empty if that is 0."""
        if not count:
            return ()
        ids_CK = self.top_ids_BCK[slot, :length, :count].tolist()
        chance_CK = self.top_chance_BCK[slot, :length, :count].tolist()
        return tuple(
            tuple(Alternative(*pair) for pair in zip(*row, strict=True) if pair[1] > 0)
            for row in zip(ids_CK, chance_CK, strict=True)
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
    fillings: tuple[Filling | None, ...]
    """After the step."""
    before: Ledger
    after: Ledger
    report: Report
    finished: dict[int, Generation]
    """Captions done with this step, by request."""
    broken: tuple[int, ...]
    """Requests whose logits were not finite; they have left without a caption."""

    def __iter__(self) -> Iterator[StepEvent]:
        slots = zip(self.requests, self.settings, self.fillings, strict=True)
        for slot, (request, settings, filling) in enumerate(slots):
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
                holes=() if filling is None else filling.layout.spans,
                choosing=filling is not None and not filling.settled,
            )

"""What canvases attend to: their prompts, cached or recomputed, in buckets of like lengths.

Shape suffixes: S sequences (the requests, then the unconditional twins of the guided ones), P
prompt rows, C canvas rows, D hidden size, T packed canvas rows.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from rediff_model.runtime.compiled import CompiledDecoder
from rediff_model.runtime.cpu_decoder import LeanDecoder, suits
from rediff_model.runtime.cuda_graphs import Recorder, Recording, replays
from rediff_model.runtime.kv_buffers import Buffers, room
from rediff_model.runtime.padded import Bucket, BucketAttend, PaddedPart
from rediff_model.runtime.thread_pool import spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from rediff_model.language import Decoder, LanguageModel
    from rediff_model.runtime.varlen import PackedPart

    Part = PackedPart | PaddedPart

ROWS_AT_ONCE = 512
"""Rows of a pass on a CPU: what lies between two products stays in the processor's cache."""


SHORT = 1 << 26
"""Multiplications of a square product up to which a thread alone is faster than several: they would
wait for each other longer than it takes."""


@dataclass(frozen=True, slots=True)
class Context:
    """The prompts of all sequences.

    Sequences share a bucket if their prompts and their canvases round up to the same room, so
    that a long prompt costs short ones beside it nothing, and padding is a quarter at most.

    With prefix attention their keys and values are computed when they join. With full attention
    they run again at every `interval`th forward pass of their sequence, from the first one on;
    None is the first only.
    """

    decoder: Decoder | CompiledDecoder | LeanDecoder
    embedding_VD: Tensor
    head: Callable[[Tensor], Tensor]
    """The LM head."""
    prefix: bool
    interval: int | None
    rows: tuple[int, ...] = ()
    """Canvas rows of each sequence."""
    seen: tuple[int, ...] = ()
    """How many of them take part in a pass, from the first on."""
    buckets: tuple[Bucket, ...] = ()
    index_T: Tensor | None = None
    """Where in the flat canvases [S x C] the rows of a pass are; None if they are the same."""
    order_T: Tensor | None = None
    """Which rows of a pass are the rows seen, one sequence after the other; None if all are, in
    that order."""
    place_T: Tensor | None = None
    """Where in the flat canvases the rows seen are; None without sequences."""
    recording: Recording | None = None
    """Of steps that compute no prompt; None if steps are not recorded."""

    @classmethod
    def empty(
        cls,
        model: LanguageModel,
        interval: int | None,
        *,
        graphs: bool = False,
        compiled: bool = False,
    ) -> Context:
        """Without sequences. Where it helps, with a copy of the model's weights.

        `graphs` records steps, where the device can; `compiled` runs compiled layers, not a copy.
        """
        lean = LeanDecoder.of(model) if suits(model) and not compiled else None
        head = model.logits if lean is None else lean.logits
        embedding_VD = model.model.embed_tokens.weight
        device = embedding_VD.device
        return cls(
            lean or (CompiledDecoder.of(model) if compiled else model.model),
            embedding_VD,
            head,
            model.model.config.prefix_attention == "prefix",
            interval,
            recording=Recording(Recorder(device)) if graphs and replays(device) else None,
        )

    @property
    def columns(self) -> int:
        """Canvas rows of the longest sequence."""
        return max(self.rows)

    def join(self, model: LanguageModel, prompts: Sequence[Tensor], rows: Sequence[int]) -> Context:
        """Add sequences behind the others: prompts [P, D] and the canvas rows of each."""
        buckets = {(one.buffers.canvas, one.buffers.prompt): one for one in self.buckets}
        places: dict[tuple[int, int], list[int]] = {}
        for number, (prompt_PD, canvas) in enumerate(zip(prompts, rows, strict=True)):
            places.setdefault((room(canvas), room(len(prompt_PD))), []).append(number)
        jobs: list[tuple[Part, Tensor]] = []
        for key, numbers in places.items():
            old = buckets.get(key) or Bucket.empty(self._buffers(model, *key))
            bucket = old.join(
                [len(self.rows) + number for number in numbers],
                [prompts[number] for number in numbers],
                [rows[number] for number in numbers],
            )
            buckets[key] = bucket
            if self.prefix:
                first = len(old.sequences)
                width = max(1, self._most() // bucket.prompt)
                for start in range(0, len(numbers), width):
                    some = numbers[start : start + width]
                    new = range(first + start, first + start + len(some))
                    part = bucket.part(range(0), new, sees_canvas=False)
                    jobs.append((part, part.joined([prompts[one] for one in some])))
        if jobs:
            self._prefill(jobs)
        return self._of((*self.rows, *rows), tuple(buckets.values()))

    def _prefill(self, jobs: Sequence[tuple[Part, Tensor]]) -> None:
        """Compute keys and values of prompts: all at once, or on a CPU some at a time."""
        if isinstance(self.decoder, LeanDecoder):
            spread(lambda job: self._run(job[:1], job[1:]), jobs, short=self._short(jobs[0][1]))
        else:
            parts, packed = zip(*jobs, strict=True)
            self._run(parts, packed)

    def arrange(self, order: Sequence[int]) -> Context:
        """Only the sequences of `order`, numbered by their places in it."""
        number = {sequence: place for place, sequence in enumerate(order)}
        buckets = []
        for bucket in self.buckets:
            kept = [row for row, one in enumerate(bucket.sequences) if one in number]
            if kept:
                buckets.append(bucket.keep(kept, [number[bucket.sequences[row]] for row in kept]))
        return self._of(tuple(self.rows[sequence] for sequence in order), tuple(buckets))

    def seeing(self, seen: Sequence[int]) -> Context:
        """The same sequences, of whose canvases so many rows each take part from now on."""
        if tuple(seen) == self.seen:
            return self
        return self._of(
            self.rows,
            tuple(
                bucket.seeing([seen[one] for one in bucket.sequences]) for bucket in self.buckets
            ),
        )

    def hidden(self, ids_SC: Tensor) -> Tensor:
        """Run canvases; the rows seen after the final norm, one sequence after the other, [T, D],
        valid until the next call."""
        if self.recording is None or not self._repeats():
            return self._hidden(ids_SC)
        return self.recording(ids_SC, self._hidden)

    def _repeats(self) -> bool:
        """Whether every step of this layout that does repeat launches the same."""
        current = all(one.moves == one.buffers.moves[0] for one in self.buckets)
        return current and (self.interval == 1 or not any(map(self._due, self.buckets)))

    def _hidden(self, ids_SC: Tensor) -> Tensor:
        ids_T = ids_SC.flatten()
        if self.index_T is not None:
            ids_T = ids_T.index_select(0, self.index_T)
        passes = list(self._passes())
        sizes = [sum(part.canvas_rows for part in parts) for parts in passes]
        jobs = list(zip(passes, torch.split(ids_T, sizes), strict=True))
        done = spread(self._canvases, jobs, short=self._short(ids_T))
        hidden_TD = torch.cat(done)
        return hidden_TD if self.order_T is None else hidden_TD.index_select(0, self.order_T)

    def _canvases(self, job: tuple[Sequence[Part], Tensor]) -> Tensor:
        """One pass: canvas rows of the ids [T] of all its parts, after the final norm."""
        parts, ids_T = job
        canvas_TD = functional.embedding(ids_T, self.embedding_VD)
        own = torch.split(canvas_TD, [part.canvas_rows for part in parts])
        packed: list[Tensor] = []
        for part, rows_TD in zip(parts, own, strict=True):
            packed.append(rows_TD)
            if part.prompt_rows:
                packed.append(part.prompts())
        if len(packed) == len(parts):
            return self._run(parts, packed, ids_T)
        hidden_TD = self._run(parts, packed)
        sizes = [size for part in parts for size in (part.canvas_rows, part.prompt_rows)]
        return torch.cat(torch.split(hidden_TD, sizes)[::2])

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """[T, V] from rows after the final norm."""
        return self.head(hidden_TD)

    def _most(self) -> int:
        """Rows of a pass at most."""
        return ROWS_AT_ONCE if isinstance(self.decoder, LeanDecoder) else sys.maxsize

    def _short(self, rows: Tensor) -> bool:
        """Whether operations on so many rows are not worth sharing."""
        most = min(len(rows), ROWS_AT_ONCE)
        lean = isinstance(self.decoder, LeanDecoder)
        return lean and most * self.embedding_VD.shape[1] ** 2 <= SHORT

    def _passes(self) -> Iterator[list[Part]]:
        """The parts of a step that run together: all, or on a CPU a number of rows."""
        dues = [self._due(bucket) for bucket in self.buckets]
        sizes = [one.sizes(due) for one, due in zip(self.buckets, dues, strict=True)]
        most, even = self._rows_at_once(sum(map(sum, sizes)))
        parts: list[Part] = []
        rows = 0
        for bucket, due, size_G in zip(self.buckets, dues, sizes, strict=True):

            def part(
                first: int, last: int, bucket: Bucket = bucket, due: Sequence[int] = due
            ) -> Part:
                prompts = [row for row in due if first <= row < last]
                return bucket.part(range(first, last), prompts, sees_canvas=True)

            first = 0
            for row, size in enumerate(size_G):
                if rows and (rows + size > most or 2 * rows + size > 2 * even):
                    if first < row:
                        parts.append(part(first, row))
                    yield parts
                    parts, rows, first = [], 0, row
                rows += size
            parts.append(part(first, len(size_G)))
        yield parts

    def _rows_at_once(self, rows: int) -> tuple[int, int]:
        """Of so many rows in all, those of a pass at most, and those that make passes even.

        On a CPU every thread has as many passes as any other if there are sequences.
        """
        if not isinstance(self.decoder, LeanDecoder):
            return sys.maxsize, sys.maxsize
        threads = torch.get_num_threads()
        passes = -(-rows // ROWS_AT_ONCE)
        if len(self.rows) >= threads:
            passes = -(-passes // threads) * threads
        return ROWS_AT_ONCE, -(-rows // passes)

    def _run(
        self, parts: Sequence[Part], packed: Sequence[Tensor], ids_T: Tensor | None = None
    ) -> Tensor:
        """Rows of all parts, one after the other, through the model; `ids_T` if all have ids."""
        position_T = torch.cat([part.position_T for part in parts])
        rows_TD = torch.cat(list(packed))
        if isinstance(self.decoder, LeanDecoder):
            attend = BucketAttend(tuple(parts), self.decoder.bounded)
            return self.decoder(rows_TD, position_T, attend, ids_T)
        hidden_TD: Tensor = self.decoder(rows_TD, position_T, BucketAttend(tuple(parts)))
        return hidden_TD

    def aged(self) -> Context:
        """After a forward pass."""
        if self.prefix or self.interval == 1:
            return self
        older = (replace(one, ages=tuple(age + 1 for age in one.ages)) for one in self.buckets)
        return replace(self, buckets=tuple(older))

    def _due(self, bucket: Bucket) -> Sequence[int]:
        """Rows whose prompts run in this step."""
        if self.prefix:
            return ()
        if self.interval == 1:
            return range(len(bucket.ages))
        if self.interval is None:
            return [row for row, age in enumerate(bucket.ages) if age == 0]
        return [row for row, age in enumerate(bucket.ages) if age % self.interval == 0]

    def _buffers(self, model: LanguageModel, canvas: int, prompt: int) -> Buffers:
        transient = not self.prefix and self.interval == 1
        layers = 1 if transient else model.model.config.num_hidden_layers
        return Buffers.empty(model, canvas, prompt, layers, keep=not self.prefix)

    def _of(self, rows: tuple[int, ...], buckets: tuple[Bucket, ...]) -> Context:
        """With the packed order of these buckets."""
        columns = max(rows)
        seen, begins = [0] * len(rows), [0] * len(rows)
        index: list[NDArray[np.int64]] = []
        count = 0
        for bucket in buckets:
            for sequence, run, own in zip(
                bucket.sequences, bucket.columns, bucket.rows, strict=True
            ):
                seen[sequence], begins[sequence] = own, count
                index.append(np.arange(run) + sequence * columns)
                count += run
        order = [np.arange(own) + begin for own, begin in zip(seen, begins, strict=True)]
        place = [np.arange(own) + number * columns for number, own in enumerate(seen)]
        return replace(
            self,
            rows=rows,
            seen=tuple(seen),
            buckets=buckets,
            index_T=self._index(index, len(rows) * columns),
            order_T=self._index(order, count),
            place_T=torch.from_numpy(np.concatenate(place)).to(self.embedding_VD.device),
            recording=None if self.recording is None else Recording(self.recording.recorder),
        )

    def _index(self, parts: Sequence[NDArray[np.int64]], count: int) -> Tensor | None:
        """The parts together on the device; None if they are the numbers below `count`."""
        index = np.concatenate(parts)
        if np.array_equal(index, np.arange(count)):
            return None
        return torch.from_numpy(index).to(self.embedding_VD.device)

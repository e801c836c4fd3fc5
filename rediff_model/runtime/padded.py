"""Sequences of like lengths side by side: one attention call runs the canvases of a bucket.

Shape suffixes: G sequences of a bucket, R of them whose prompts run, P prompt rows, C canvas
rows, N = C + P, T packed rows, H query heads, K key/value heads, E head size, D hidden size.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from rediff_model.runtime.attention import attend
from rediff_model.runtime.varlen import Packed, PackedPart, runs_packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rediff_model.runtime.kv_buffers import Buffers


@dataclass(frozen=True, slots=True)
class Bucket:
    """The sequences in the first rows of some buffers.

    Buckets that follow each other share buffers: only the newest may run. An older one refuses
    to once its prompts have moved, as after a step that failed when memory ran out.
    """

    buffers: Buffers
    sequences: tuple[int, ...]
    """Which sequence each row holds."""
    lengths: tuple[int, ...]
    """Prompt rows of each."""
    rows: tuple[int, ...]
    """Canvas rows of each that take part."""
    ages: tuple[int, ...]
    """Forward passes of each."""
    layout: Packed | Padded
    moves: int
    """`Buffers.moves` when it was laid out."""

    @classmethod
    def empty(cls, buffers: Buffers) -> Bucket:
        no_rows = torch.zeros((0, 0), dtype=torch.int64, device=buffers.keys[0].device)
        return cls(buffers, (), (), (), (), Padded(no_rows, None), buffers.moves[0])

    @classmethod
    def lay_out(
        cls,
        buffers: Buffers,
        sequences: Sequence[int],
        lengths: Sequence[int],
        rows: Sequence[int],
        ages: Sequence[int],
    ) -> Bucket:
        like = buffers.keys[0]
        kind = Packed if lies_packed(like) else Padded
        return cls(
            buffers,
            tuple(sequences),
            tuple(lengths),
            tuple(rows),
            tuple(ages),
            kind.lay_out(buffers, lengths, rows),
            buffers.moves[0],
        )

    def join(
        self, sequences: Sequence[int], prompts: Sequence[Tensor], rows: Sequence[int]
    ) -> Bucket:
        """Add sequences behind the others: prompts [P, D] and the canvas rows of each."""
        used = len(self.sequences)
        buffers = self.buffers.grown(used, used + len(sequences))
        buffers.clear(used, used + len(sequences))
        if buffers.prompt_GPD is not None:
            for row, prompt_PD in enumerate(prompts, start=used):
                buffers.prompt_GPD[row] = padded(prompt_PD, buffers.prompt)
        return Bucket.lay_out(
            buffers,
            (*self.sequences, *sequences),
            (*self.lengths, *(len(prompt_PD) for prompt_PD in prompts)),
            (*self.rows, *rows),
            (*self.ages, *(0 for _ in sequences)),
        )

    def seeing(self, rows: Sequence[int]) -> Bucket:
        """The same sequences, of whose canvases so many rows each take part."""
        if tuple(rows) == self.rows:
            return self
        return Bucket.lay_out(self.buffers, self.sequences, self.lengths, rows, self.ages)

    @property
    def canvas(self) -> int:
        """Canvas rows of the longest."""
        return max(self.rows)

    @property
    def columns(self) -> tuple[int, ...]:
        """Canvas rows that run of each sequence."""
        packed = isinstance(self.layout, Packed)
        return self.rows if packed else (self.canvas,) * len(self.rows)

    def sizes(self, prompts: Sequence[int]) -> tuple[int, ...]:
        """Rows of a pass that each sequence takes if the prompts of some run."""
        packed = isinstance(self.layout, Packed)
        runs = set(prompts)
        return tuple(
            canvas + (0 if row not in runs else length if packed else self.prompt)
            for row, (canvas, length) in enumerate(zip(self.columns, self.lengths, strict=True))
        )

    def part(
        self, canvases: range, prompts: Sequence[int], *, sees_canvas: bool
    ) -> PackedPart | PaddedPart:
        """The canvases of a range of rows, and the prompts of others, ascending.

        Raises:
            RuntimeError: the prompts have moved since this was laid out.
        """
        if self.moves != self.buffers.moves[0]:
            raise RuntimeError("a later state has moved the prompts of this one")
        if isinstance(self.layout, Packed):
            return PackedPart.of(
                self.buffers, self.layout, canvases, prompts, sees_canvas=sees_canvas
            )
        return PaddedPart.of(self, self.layout, canvases, prompts, sees_canvas=sees_canvas)

    @property
    def prompt(self) -> int:
        """Prompt rows of the longest."""
        return max(self.lengths)

    def keep(self, kept: Sequence[int], sequences: Sequence[int]) -> Bucket:
        """Only the rows `kept`, renumbered; the last ones move where others leave holes.

        Buffers that are too large by now are replaced, if there is memory for smaller ones.
        """
        place = list(kept)
        buffers = self._smaller(place)
        if buffers is self.buffers and len(place) < len(self.sequences):
            holes = sorted(set(range(len(place))) - set(place))
            late = [row for row in place if row >= len(place)]
            if holes:
                self.buffers.move(late, holes)
            at = dict(zip(late, holes, strict=True))
            place.sort(key=lambda row: at.get(row, row))
        number = dict(zip(kept, sequences, strict=True))
        return Bucket.lay_out(
            buffers,
            [number[row] for row in place],
            [self.lengths[row] for row in place],
            [self.rows[row] for row in place],
            [self.ages[row] for row in place],
        )

    def _smaller(self, kept: Sequence[int]) -> Buffers:
        """Buffers for the rows `kept` alone; the same ones while these are not too large."""
        if not self.buffers.wasted(len(kept)):
            return self.buffers
        # Memory that has run out is when requests are dropped: it must go without more.
        with suppress(RuntimeError):
            return self.buffers.shrunk(kept)
        return self.buffers


@dataclass(frozen=True, slots=True)
class Padded:
    """The sequences of a bucket as if all were as long as the longest, with what is not hidden."""

    position_GC: Tensor
    bias_GN: Tensor | None
    """-inf over canvas and prompt rows that are padding; None if there is none."""

    @classmethod
    def lay_out(cls, buffers: Buffers, lengths: Sequence[int], rows: Sequence[int]) -> Padded:
        device, dtype = buffers.keys[0].device, buffers.keys[0].dtype
        length_G1, rows_G1 = torch.tensor((lengths, rows)).to(device)[:, :, None]
        at_C, at_P = (torch.arange(max(sizes), device=device) for sizes in (rows, lengths))
        bias_GN = None
        if len(set(lengths)) > 1 or len(set(rows)) > 1:
            allowed_GN = torch.cat((at_C < rows_G1, at_P < length_G1), dim=1)
            bias_GN = torch.zeros(allowed_GN.shape, dtype=dtype, device=device)
            bias_GN.masked_fill_(~allowed_GN, -torch.inf)
        return cls(length_G1 + at_C, bias_GN)


@dataclass(frozen=True, slots=True)
class PaddedPart:
    """What a forward pass runs of a bucket: canvases of some rows, prompts of some, or both."""

    bucket: Bucket
    position_GC: Tensor
    canvases: slice
    """Of which rows the canvases run."""
    prompts_R: slice | Tensor | None
    count: int
    """How many prompts."""
    bias_GN: Tensor | None
    bias_RN: Tensor | None
    sees_canvas: bool
    """Prompt rows attend to the canvas as well (full attention)."""

    @classmethod
    def of(
        cls,
        bucket: Bucket,
        layout: Padded,
        canvases: range,
        prompts: Sequence[int],
        *,
        sees_canvas: bool,
    ) -> PaddedPart:
        """As `Bucket.part`."""
        rows = slice(canvases.start, canvases.stop)
        position_GC = layout.position_GC[rows]
        prompts_R: slice | Tensor | None = None
        if prompts and prompts[-1] - prompts[0] + 1 == len(prompts):
            prompts_R = slice(prompts[0], prompts[-1] + 1)
        elif prompts:
            prompts_R = torch.tensor(prompts).to(position_GC.device)
        bias_GN = bias_RN = None
        if layout.bias_GN is not None:
            bias_GN = layout.bias_GN[rows]
            if prompts_R is not None:
                bias_RN = layout.bias_GN[prompts_R, 0 if sees_canvas else bucket.canvas :]
        return cls(
            bucket, position_GC, rows, prompts_R, len(prompts), bias_GN, bias_RN, sees_canvas
        )

    @property
    def canvas_rows(self) -> int:
        rows: int = (self.canvases.stop - self.canvases.start) * self.bucket.canvas
        return rows

    @property
    def prompt_rows(self) -> int:
        return self.count * self.bucket.prompt

    @property
    def position_T(self) -> Tensor:
        """Of the canvas rows, then of the prompt rows."""
        found = [self.position_GC.flatten()]
        if self.count:
            at_P = torch.arange(self.bucket.prompt, device=self.position_GC.device)
            found.append(at_P.repeat(self.count))
        return torch.cat(found)

    def prompts(self) -> Tensor:
        """The embedded prompts that run, [T, D]."""
        prompt_GPD = self.bucket.buffers.prompt_GPD
        assert prompt_GPD is not None
        assert self.prompts_R is not None
        return prompt_GPD[self.prompts_R, : self.bucket.prompt].flatten(0, 1)

    def joined(self, prompts: Sequence[Tensor]) -> Tensor:
        """Prompts [P, D] of the sequences that run, as rows of a pass."""
        return torch.cat([padded(prompt_PD, self.bucket.prompt) for prompt_PD in prompts])

    def attend(
        self,
        layer: int,
        query_THE: Tensor,
        key_TKE: Tensor,
        value_TKE: Tensor,
        *,
        bounded: bool = False,
    ) -> Tensor:
        """Keep new keys and values, and attend to those in the buffers; [T, H, E].

        `bounded`: as in `cache.attend`.
        """
        buffers, edge = self.bucket.buffers, self.bucket.buffers.canvas
        begin, end = edge - self.bucket.canvas, edge + self.bucket.prompt
        split = self.canvas_rows
        layer %= len(buffers.keys)
        stored = (buffers.keys[layer], buffers.values[layer])
        for buffer, rows_TKE in zip(stored, (key_TKE, value_TKE), strict=True):
            heads = rows_TKE.shape[1:]
            if split:
                own = rows_TKE[:split].view(-1, edge - begin, *heads)
                buffer[self.canvases, begin:edge] = own
            if self.prompts_R is not None:
                own = rows_TKE[split:].view(self.count, -1, *heads)
                buffer[self.prompts_R, edge:end] = own
        outputs = []
        if split:
            keys, values = (buffer[self.canvases, begin:end] for buffer in stored)
            outputs.append(attend(query_THE[:split], keys, values, self.bias_GN, bounded))
        if self.prompts_R is not None:
            first = begin if self.sees_canvas else edge
            keys, values = (buffer[self.prompts_R, first:end] for buffer in stored)
            outputs.append(attend(query_THE[split:], keys, values, self.bias_RN, bounded))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@dataclass(frozen=True, slots=True)
class BucketAttend:
    """Attention of packed rows: those of one part after the other."""

    parts: tuple[PackedPart | PaddedPart, ...]
    bounded: bool = False

    def __call__(self, layer: int, query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor) -> Tensor:
        if len(self.parts) == 1:
            part = self.parts[0]
            return part.attend(layer, query_THE, key_TKE, value_TKE, bounded=self.bounded)
        sizes = [part.canvas_rows + part.prompt_rows for part in self.parts]
        queries, keys, values = (
            torch.split(rows, sizes) for rows in (query_THE, key_TKE, value_TKE)
        )
        columns = zip(self.parts, queries, keys, values, strict=True)
        seen = [part.attend(layer, *rows, bounded=self.bounded) for part, *rows in columns]
        return torch.cat(seen)


def lies_packed(like: Tensor) -> bool:
    """Whether rows lie packed in buffers like this one: a CPU takes a sequence at a time anyway."""
    return like.device.type == "cpu" or runs_packed(like.device, like.dtype, like.shape[-1])


def padded(prompt_PD: Tensor, rows: int) -> Tensor:
    """A prompt with rows of zeros at its end."""
    return functional.pad(prompt_PD, (0, 0, 0, rows - len(prompt_PD)))

"""Attention over buffers in place, without padding: `torch.nn.attention.varlen` on a GPU, one
sequence after the other on a CPU.

Each sequence names its first key in the flat buffer and how many follow, so nothing is copied and
no mask is read. The kernel wants keys without gaps: what lies between two sequences is one more,
with no query.

Shape suffixes: G sequences of a bucket, S sequences of a call, W = 2 S - 1 with the gaps between
them, T packed rows, N rows of a buffer, P prompt rows, H query heads, K key/value heads, E head
size, D hidden size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from inspect import signature
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from rediff_model.runtime.attention import attend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rediff_model.runtime.kv_buffers import Buffers

logger = logging.getLogger(__name__)

TOLERANCE = 0.02
"""By which half-precision outputs of about unit size may differ from the fused attention's."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Which keys the queries of each sequence see; int32, on the device."""

    query_edges_W: Tensor
    """[W + 1]: where the queries of sequences and gaps begin, and where the last ones end."""
    key_edges_W: Tensor
    """[W + 1]: the same of the keys."""
    most_queries: int
    most_keys: int

    @classmethod
    def of(
        cls, queries_S: Tensor, first_S: Tensor, keys_S: Tensor, most_queries: int, most_keys: int
    ) -> Spans:
        """Of sequences that have so many queries each, one after the other.

        `first_S` is the row of a sequence's first key, ascending, and `keys_S` how many it sees
        from there on; none may reach into the next one.
        """
        end_S = queries_S.cumsum(0)
        query_edges_W = torch.stack((end_S - queries_S, end_S), dim=1).flatten()
        key_edges_W = torch.stack((first_S, first_S + keys_S), dim=1).flatten()
        return cls(query_edges_W.int(), key_edges_W.int(), most_queries, most_keys)


@dataclass(frozen=True, slots=True)
class Strip:
    """Rows of sequences, one after the other."""

    position_T: Tensor
    place_T: Tensor
    """Rows of the flat buffers."""
    edges: tuple[int, ...]
    """Where the rows of each sequence begin, and where the last ones end."""

    @classmethod
    def of(
        cls,
        positions: Sequence[int],
        places: Sequence[int],
        counts: Sequence[int],
        device: torch.device,
    ) -> Strip:
        """Of sequences whose rows have ascending positions and places from these on."""

        def runs(firsts: Sequence[int]) -> Tensor:
            pairs = zip(firsts, counts, strict=True)
            return torch.cat([torch.arange(first, first + count) for first, count in pairs])

        position_T, place_T = torch.stack((runs(positions), runs(places))).to(device)
        return cls(position_T, place_T, (0, *accumulate(counts)))

    def select(self, sequences: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Positions and places of some sequences, ascending."""
        runs = [slice(self.edges[run.start], self.edges[run.stop]) for run in _runs(sequences)]
        if not runs:
            return self.position_T[:0], self.place_T[:0]
        return (
            torch.cat([self.position_T[run] for run in runs]),
            torch.cat([self.place_T[run] for run in runs]),
        )


def _runs(sequences: Sequence[int]) -> list[range]:
    """Ascending numbers as ranges of neighbours."""
    runs: list[range] = []
    for one in sequences:
        if runs and runs[-1].stop == one:
            runs[-1] = range(runs[-1].start, one + 1)
        else:
            runs.append(range(one, one + 1))
    return runs


@dataclass(frozen=True, slots=True)
class Packed:
    """Where the rows of a bucket's sequences lie: a canvas ends where its prompt begins."""

    canvases: Strip
    prompts: Strip
    numbers_3G: Tensor
    """Of each sequence: canvas rows, prompt rows, and the row of the flat buffers where the prompt
    begins."""
    most_rows: int
    most_length: int

    @classmethod
    def lay_out(cls, buffers: Buffers, lengths: Sequence[int], rows: Sequence[int]) -> Packed:
        device = buffers.keys[0].device
        width = buffers.canvas + buffers.prompt
        prompts = [number * width + buffers.canvas for number in range(len(lengths))]
        begins = [prompt - count for prompt, count in zip(prompts, rows, strict=True)]
        return cls(
            Strip.of(lengths, begins, rows, device),
            Strip.of([0] * len(lengths), prompts, lengths, device),
            torch.tensor((rows, lengths, prompts)).to(device),
            max(rows),
            max(lengths),
        )

    def numbers(self, sequences: Sequence[int]) -> tuple[Tensor, ...]:
        """`numbers_3G` of some sequences, ascending, a tensor each."""
        runs = [self.numbers_3G[:, run.start : run.stop] for run in _runs(sequences)]
        rows_S, length_S, prompt_S = torch.cat(runs, dim=1)
        return rows_S, length_S, prompt_S


@dataclass(frozen=True, slots=True)
class PackedPart:
    """What a forward pass runs of a bucket: canvases of some rows, prompts of some, or both."""

    buffers: Buffers
    canvas_rows: int
    prompt_rows: int
    position_T: Tensor
    """Of the canvas rows, then of the prompt rows."""
    place_T: Tensor
    """Where their keys and values go in the flat buffers."""
    spans_G: Spans | None
    """Of the canvases that run."""
    spans_R: Spans | None
    """Of the prompts that run."""

    @classmethod
    def of(
        cls,
        buffers: Buffers,
        layout: Packed,
        canvases: range,
        prompts: Sequence[int],
        *,
        sees_canvas: bool,
    ) -> PackedPart:
        """The canvases of a range of sequences, and the prompts of others, ascending.

        With `sees_canvas` prompt rows attend to the canvas as well (full attention).
        """
        canvas_T, prompt_T = layout.canvases.select(canvases), layout.prompts.select(prompts)
        spans_G = spans_R = None
        most_keys = layout.most_rows + layout.most_length
        if canvases:
            rows_S, length_S, prompt_S = layout.numbers(canvases)
            spans_G = Spans.of(
                rows_S, prompt_S - rows_S, rows_S + length_S, layout.most_rows, most_keys
            )
        if prompts:
            rows_S, length_S, prompt_S = layout.numbers(prompts)
            before_S = rows_S if sees_canvas else torch.zeros_like(rows_S)
            spans_R = Spans.of(
                length_S, prompt_S - before_S, before_S + length_S, layout.most_length, most_keys
            )
        return cls(
            buffers,
            len(canvas_T[0]),
            len(prompt_T[0]),
            torch.cat((canvas_T[0], prompt_T[0])),
            torch.cat((canvas_T[1], prompt_T[1])),
            spans_G,
            spans_R,
        )

    def prompts(self) -> Tensor:
        """The embedded prompts that run, [T, D]."""
        prompt_GPD = self.buffers.prompt_GPD
        assert prompt_GPD is not None
        place_T = self.place_T[self.canvas_rows :]
        width = self.buffers.canvas + self.buffers.prompt
        sequence_T = torch.div(place_T, width, rounding_mode="floor")
        return prompt_GPD[sequence_T, place_T - sequence_T * width - self.buffers.canvas]

    @staticmethod
    def joined(prompts: Sequence[Tensor]) -> Tensor:
        """Prompts [P, D] of the sequences that run, as rows of a pass."""
        return torch.cat(list(prompts))

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

        `bounded`: as in `attention.attend`.
        """
        layer %= len(self.buffers.keys)
        stored = (self.buffers.keys[layer], self.buffers.values[layer])
        for buffer, rows_TKE in zip(stored, (key_TKE, value_TKE), strict=True):
            buffer.view(-1, *buffer.shape[2:]).index_copy_(0, self.place_T, rows_TKE)
        split = self.canvas_rows
        outputs = [
            packed_attend(rows_THE, *stored, spans, bounded=bounded)
            for rows_THE, spans in (
                (query_THE[:split], self.spans_G),
                (query_THE[split:], self.spans_R),
            )
            if spans is not None
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def packed_attend(
    query_THE: Tensor, key: Tensor, value: Tensor, spans: Spans, *, bounded: bool = False
) -> Tensor:
    """[T, H, E] from packed queries and whole buffers [S', N, K, E] of any number of sequences.

    `bounded`: as in `attention.attend`.
    """
    if one_by_one(query_THE):
        key_NKE, value_NKE = key.flatten(0, 1), value.flatten(0, 1)
        queries, keys = spans.query_edges_W.tolist(), spans.key_edges_W.tolist()
        outputs = [
            attend(
                query_THE[first:last],
                key_NKE[None, begin:end],
                value_NKE[None, begin:end],
                None,
                bounded,
            )
            for (first, last), (begin, end) in zip(pairwise(queries), pairwise(keys), strict=True)
            if first < last
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    from torch.nn.attention.varlen import varlen_attn

    # An older torch takes fewer key than query heads without a word.
    grouped = query_THE.shape[1] != key.shape[2] and _says_grouped()
    options: dict[str, Any] = {"enable_gqa": True} if grouped else {}
    output = varlen_attn(
        query_THE.contiguous(),
        key.flatten(0, 1),
        value.flatten(0, 1),
        spans.query_edges_W,
        spans.key_edges_W,
        spans.most_queries,
        spans.most_keys,
        **options,
    )
    assert isinstance(output, torch.Tensor)
    return output


def one_by_one(rows: Tensor) -> bool:
    """Whether attention of packed rows takes one sequence after the other."""
    return rows.device.type == "cpu"


@cache
def _says_grouped() -> bool:
    """Whether this torch wants to be told of fewer key heads."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in signature(varlen_attn).parameters


def runs_packed(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether attention of this kind can run packed here; asked once, by a small example."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return _agrees(device, dtype, head_dim)


@cache
def _agrees(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `varlen_attn` skips gaps and says what the fused attention says."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(3, 24, 2, head_dim, generator=generator) for _ in range(3)]
    queries, key, value = (rows.to(device, dtype) for rows in drawn)
    first, counts, queried = (4, 6, 2), (9, 18, 1), 8
    begins = [24 * s + row for s, row in enumerate(first)]
    begin_S, count_S = (
        torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in (begins, counts)
    )
    spans = Spans.of(torch.full_like(count_S, queried), begin_S, count_S, queried, max(counts))
    try:
        got = packed_attend(queries[:, :queried].flatten(0, 1), key, value, spans)
    # Not every torch has the function, nor every GPU the kernel.
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        logger.info("packed attention is not available: %s", error)
        return False
    for s, (row, count) in enumerate(zip(first, counts, strict=True)):
        want = scaled_dot_product_attention(
            queries[s : s + 1, :queried].transpose(1, 2),
            key[s : s + 1, row : row + count].transpose(1, 2),
            value[s : s + 1, row : row + count].transpose(1, 2),
        )
        found = got[s * queried : (s + 1) * queried]
        if not torch.allclose(found, want[0].transpose(0, 1), rtol=TOLERANCE, atol=TOLERANCE):
            logger.warning("packed attention differs from the fused one on %s: not used", device)
            return False
    return True

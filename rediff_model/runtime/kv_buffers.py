"""Room for the keys and values of sequences that come and go.

There are rows for more sequences than are there, and in a row the room of a canvas lies in front
of that of its prompt: a step copies no prompt, and a sequence that joins moves no other.

Shape suffixes: G sequences, P prompt rows, K key/value heads, E head size, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from rediff_model.language import LanguageModel


def room(rows: int) -> int:
    """Rows of a buffer for so many: rounded up by an eighth on average, at most a quarter."""
    step = max(8, 1 << max(0, (rows - 1).bit_length() - 3))
    return -(-rows // step) * step


def _roomy(sequences: int) -> int:
    """Capacity for so many and for a quarter more to come."""
    return sequences + sequences // 4


@dataclass(frozen=True, slots=True)
class Buffers:
    """Keys and values, a tensor a layer, [capacity, room, K, E], and the prompts that run again.

    One layer serves all when the prompts run at every step.
    """

    canvas: int
    """Rows of a canvas at most. Shorter ones end where the prompt begins."""
    prompt: int
    keys: list[Tensor]
    values: list[Tensor]
    prompt_GPD: Tensor | None
    """Kept with full attention only."""
    moves: list[int]
    """How often prompts were moved: one number, which all who share the buffers see."""

    @classmethod
    def empty(
        cls, model: LanguageModel, canvas: int, prompt: int, layers: int, *, keep: bool
    ) -> Buffers:
        config = model.model.config
        like = model.model.embed_tokens.weight
        shape = (0, canvas + prompt, config.num_key_value_heads, config.head_dim)
        made = [like.new_zeros(shape) for _ in range(2 * layers)]
        prompt_GPD = like.new_zeros((0, prompt, config.hidden_size)) if keep else None
        return cls(canvas, prompt, made[:layers], made[layers:], prompt_GPD, [0])

    @property
    def capacity(self) -> int:
        return len(self.keys[0])

    def wasted(self, used: int) -> bool:
        """Whether a third of the capacity, and more than one row, is without a sequence."""
        return 3 * used <= 2 * self.capacity and used + 1 < self.capacity

    def grown(self, used: int, needed: int) -> Buffers:
        """Buffers for `needed` sequences that hold the first `used` ones; these if they do."""
        if needed <= self.capacity:
            return self
        capacity = max(needed, _roomy(used))

        def grow(old: Tensor) -> Tensor:
            new = old.new_zeros((capacity, *old.shape[1:]))
            new[:used] = old[:used]
            return new

        return self._with(grow)

    def shrunk(self, rows: Sequence[int]) -> Buffers:
        """Smaller buffers that begin with copies of these rows; the old ones stay as they are."""
        at = torch.tensor(rows).to(self.keys[0].device)

        def pick(old: Tensor) -> Tensor:
            new = old.new_zeros((_roomy(len(rows)), *old.shape[1:]))
            torch.index_select(old, 0, at, out=new[: len(rows)])
            return new

        return self._with(pick)

    def _with(self, remade: Callable[[Tensor], Tensor]) -> Buffers:
        """Buffers whose tensors are made from these."""
        return replace(
            self,
            keys=[remade(layer) for layer in self.keys],
            values=[remade(layer) for layer in self.values],
            prompt_GPD=None if self.prompt_GPD is None else remade(self.prompt_GPD),
            moves=[0],
        )

    def clear(self, first: int, last: int) -> None:
        """Forget the prompts of rows `first` to `last` - 1: NaN would spread, hidden or not."""
        for layer in (*self.keys, *self.values):
            layer[first:last, self.canvas :] = 0

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the prompts of some rows over others; who knew the old places is told to stop."""
        self.moves[0] += 1
        device = self.keys[0].device
        source, target = (torch.tensor(rows).to(device) for rows in (sources, targets))
        prompts = [layer[:, self.canvas :] for layer in (*self.keys, *self.values)]
        if self.prompt_GPD is not None:
            prompts.append(self.prompt_GPD)
        for rows in prompts:
            rows[target] = rows[source]

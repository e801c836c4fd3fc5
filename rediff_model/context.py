"""What canvases attend to: their prompts, cached once or recomputed every step.

Shape suffixes: B requests, S sequences (the requests, then the unconditional twins of the
guided ones), P prompt rows, C canvas rows, D hidden size, K key/value heads, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from rediff_model.cache import DenseAttend, PrefixAttend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rediff_model.language import LanguageModel


@dataclass(frozen=True, slots=True)
class Context:
    """The prompts of a batch, padded at the end to the longest one.

    With prefix attention `keys` and `values` hold a tensor a layer, [S, K, P, E], else
    `prompt_SPD` the embeddings that every step runs again.
    """

    lengths: tuple[int, ...]
    """Prompt rows of each sequence."""
    rows: tuple[int, ...]
    """Canvas rows of each sequence."""
    positions_SC: Tensor
    allowed_SL: Tensor | None
    """Over prompt and canvas rows: which may be attended to. None is all."""
    prompt_SPD: Tensor | None
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def build(cls, model: LanguageModel, prompts: Sequence[Tensor], rows: Sequence[int]) -> Context:
        """Lay out S prompts [P, D]; with prefix attention, compute their keys and values."""
        prompt_SPD = pad_sequence(list(prompts), batch_first=True)
        lengths = tuple(len(prompt) for prompt in prompts)
        positions_SC, allowed_SL = _layout(lengths, tuple(rows), prompt_SPD.device)
        if model.model.config.prefix_attention == "full":
            return cls(lengths, tuple(rows), positions_SC, allowed_SL, prompt_SPD, (), ())
        sequences, longest = prompt_SPD.shape[:2]
        allowed_SP = None if allowed_SL is None else allowed_SL[:, :longest]
        attend = DenseAttend(sequences, allowed_SP, record=True)
        positions_P = torch.arange(longest, device=prompt_SPD.device)
        model.model(prompt_SPD.flatten(0, 1), positions_P.repeat(sequences), attend)
        keys, values = tuple(attend.keys), tuple(attend.values)
        return cls(lengths, tuple(rows), positions_SC, allowed_SL, None, keys, values)

    def hidden(self, model: LanguageModel, canvas_SCD: Tensor) -> Tensor:
        """Run embedded canvases; their rows after the final norm, [S, C, D]."""
        sequences, columns = canvas_SCD.shape[:2]
        if self.prompt_SPD is None:
            cached = PrefixAttend(list(self.keys), list(self.values), self.allowed_SL)
            hidden_TD = model.model(canvas_SCD.flatten(0, 1), self.positions_SC.flatten(), cached)
            return hidden_TD.view(sequences, columns, -1)  # type: ignore[no-any-return]
        longest = self.prompt_SPD.shape[1]
        positions_P = torch.arange(longest, device=canvas_SCD.device)
        positions_SL = torch.cat((positions_P.expand(sequences, -1), self.positions_SC), dim=1)
        whole_SLD = torch.cat((self.prompt_SPD, canvas_SCD), dim=1)
        attend = DenseAttend(sequences, self.allowed_SL)
        hidden_TD = model.model(whole_SLD.flatten(0, 1), positions_SL.flatten(), attend)
        canvas_SCD = hidden_TD.view(sequences, longest + columns, -1)[:, longest:]
        return canvas_SCD

    def select(self, kept: Sequence[int], index_S: Tensor) -> Context:
        """The sequences `kept` (also on the device as `index_S`), trimmed to the longest."""
        lengths = tuple(self.lengths[sequence] for sequence in kept)
        rows = tuple(self.rows[sequence] for sequence in kept)
        positions_SC, allowed_SL = _layout(lengths, rows, self.positions_SC.device)
        longest = max(lengths)
        prompt_SPD = self.prompt_SPD
        if prompt_SPD is not None:
            prompt_SPD = prompt_SPD[:, :longest].index_select(0, index_S)
        keys, values = (
            tuple(layer[:, :, :longest].index_select(0, index_S) for layer in layers)
            for layers in (self.keys, self.values)
        )
        return Context(lengths, rows, positions_SC, allowed_SL, prompt_SPD, keys, values)


def _layout(
    lengths: tuple[int, ...], rows: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Positions of canvas rows, [S, C], and the allowed columns, [S, P + C]."""
    lengths_S1, rows_S1 = torch.tensor((lengths, rows)).to(device)[:, :, None]
    column_P, column_C = (torch.arange(max(sizes), device=device) for sizes in (lengths, rows))
    positions_SC = lengths_S1 + column_C
    if len(set(lengths)) == len(set(rows)) == 1:
        return positions_SC, None
    return positions_SC, torch.cat((column_P < lengths_S1, column_C < rows_S1), dim=1)

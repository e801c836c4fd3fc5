"""The decoder with what lies between its attentions compiled, for a server that is told to.

Shape suffixes: T packed rows, D hidden size, H query heads, K key/value heads, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

import torch

from rediff_model.language import Layer, rotary_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from rediff_model.language import Attend, Decoder, LanguageModel


@dataclass(frozen=True, slots=True)
class CompiledDecoder:
    """A model's own weights; two compiled regions that all layers share, for any number of rows."""

    decoder: Decoder
    heads: Callable[[Layer, Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor, Tensor]]
    widen: Callable[[Layer, Tensor, Tensor], Tensor]

    @classmethod
    def of(cls, model: LanguageModel) -> Self:
        """Compiles nothing yet: the first rows do, which takes seconds.

        They raise what torch raises where there is no compiler.
        """
        return cls(
            model.model,
            torch.compile(Layer.heads, dynamic=True),
            torch.compile(Layer.widen, dynamic=True),
        )

    def __call__(self, hidden_TD: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        """As `Decoder.forward`."""
        decoder = self.decoder
        rotary = rotary_table(
            positions_T, decoder.config.head_dim, decoder.config.rope_theta, hidden_TD.dtype
        )
        for number, layer in enumerate(decoder.layers):
            layer = cast("Layer", layer)
            query_THE, key_TKE, value_TKE = self.heads(layer, hidden_TD, rotary)
            seen_THE = attend(number, query_THE, key_TKE, value_TKE)
            hidden_TD = self.widen(layer, hidden_TD, seen_THE)
        normed_TD: Tensor = decoder.norm(hidden_TD)
        return normed_TD

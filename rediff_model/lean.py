"""The decoder as few large products with everything between them in place: for steps on a CPU.

The same function as `language.Decoder`, from copies of its weights: query, key and value in one
product, gate and up in one, norms scaled into the product that follows them, and the two halves
of a rotary pair side by side, so that rotating is a complex product.

Shape suffixes: T packed rows, D hidden size, F intermediate size, H query heads, K key/value
heads, E head size, N outputs of a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rediff_model.language import Attend, Attention, LanguageModel, Layer

LARGEST = 1 << 30
"""Bytes of weights at most that are copied."""


@dataclass(frozen=True, slots=True)
class LeanLayer:
    """Weights of a layer, transposed."""

    project_DN: Tensor
    """To queries, keys and values."""
    bias_N: Tensor | None
    norm_HE: Tensor | None
    """Weights of the queries' and keys' norms, [H + K, E]."""
    output_ND: Tensor
    output_bias_D: Tensor | None
    widen_DN: Tensor
    """To gate and up."""
    narrow_FD: Tensor

    @classmethod
    def of(cls, layer: Layer) -> Self:
        attention, mlp = layer.self_attn, layer.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        order = _paired(attention)
        weights = [part.weight for part in parts]
        biases = [part.bias for part in parts if part.bias is not None]
        rows = [weight[order[: len(weight)]] for weight in weights[:2]]
        project_ND = torch.cat((*rows, weights[2])) * layer.input_layernorm.weight
        widen_ND = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
        return cls(
            project_DN=project_ND.T.contiguous(),
            bias_N=torch.cat((*(b[order[: len(b)]] for b in biases[:2]), biases[2]))
            if biases
            else None,
            norm_HE=_head_norms(attention, order),
            output_ND=attention.o_proj.weight.T.contiguous(),
            output_bias_D=attention.o_proj.bias,
            widen_DN=(widen_ND * layer.post_attention_layernorm.weight).T.contiguous(),
            narrow_FD=mlp.down_proj.weight.T.contiguous(),
        )


@dataclass(frozen=True, slots=True)
class LeanDecoder:
    """A copy of a decoder's weights; later changes of the decoder do not reach it."""

    layers: tuple[LeanLayer, ...]
    norm_D: Tensor
    heads: int
    key_heads: int
    head_dim: int
    theta: float
    eps: float

    @classmethod
    @torch.no_grad()
    def of(cls, model: LanguageModel) -> Self:
        decoder = model.model
        config = decoder.config
        return cls(
            layers=tuple(LeanLayer.of(cast("Layer", layer)) for layer in decoder.layers),
            norm_D=decoder.norm.weight.clone(),
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            theta=config.rope_theta,
            eps=config.rms_norm_eps,
        )

    def __call__(self, hidden_TD: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        """As `Decoder.forward`; overwrites `hidden_TD`."""
        rows = len(hidden_TD)
        rotated = self.heads + self.key_heads
        turn_T1E = self._turns(positions_T, hidden_TD.dtype)
        for number, layer in enumerate(self.layers):
            normed_TD = hidden_TD * self._scale(hidden_TD)
            if layer.bias_N is None:
                mixed_TN = normed_TD @ layer.project_DN
            else:
                mixed_TN = torch.addmm(layer.bias_N, normed_TD, layer.project_DN)
            heads_THE = mixed_TN.view(rows, -1, self.head_dim)
            turning_THE = heads_THE[:, :rotated]
            if layer.norm_HE is not None:
                turning_THE *= self._scale(turning_THE)
                turning_THE *= layer.norm_HE
            pairs = turning_THE.view(rows, rotated, -1, 2)
            torch.view_as_complex(pairs).mul_(turn_T1E)
            query_THE, key_TKE = turning_THE[:, : self.heads], turning_THE[:, self.heads :]
            seen_THE = attend(number, query_THE, key_TKE, heads_THE[:, rotated:])
            hidden_TD.addmm_(seen_THE.reshape(rows, -1), layer.output_ND)
            if layer.output_bias_D is not None:
                hidden_TD += layer.output_bias_D
            normed_TD = hidden_TD * self._scale(hidden_TD)
            gate_TF, up_TF = (normed_TD @ layer.widen_DN).chunk(2, dim=1)
            functional.silu(gate_TF, inplace=True).mul_(up_TF)
            hidden_TD.addmm_(gate_TF, layer.narrow_FD)
        return hidden_TD.mul_(self._scale(hidden_TD)).mul_(self.norm_D)

    def _scale(self, rows: Tensor) -> Tensor:
        """What a root-mean-square norm multiplies rows by, [..., 1]."""
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        scale: Tensor = length.square_().div_(rows.shape[-1]).add_(self.eps).rsqrt_()
        return scale

    def _turns(self, positions_T: Tensor, dtype: torch.dtype) -> Tensor:
        """Rotary positions as complex numbers, [T, 1, E / 2]; see `language.rotary_table`."""
        exponent_E = torch.arange(0, self.head_dim, 2, dtype=torch.int64).to(dtype) / self.head_dim
        angle_TE = positions_T.to(dtype)[:, None] * (1.0 / self.theta**exponent_E)
        return torch.polar(torch.ones_like(angle_TE), angle_TE)[:, None]


def suits(model: LanguageModel) -> bool:
    """Whether `LeanDecoder` runs this model: on a CPU, in full precision, not too large."""
    weights = list(model.model.layers.parameters())
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    full = {weight.dtype for weight in weights} <= {torch.float32, torch.float64}
    return weights[0].device.type == "cpu" and full and size <= LARGEST


def _paired(attention: Attention) -> Tensor:
    """Rows of the query projection with both halves of each rotary pair side by side."""
    within = torch.arange(attention.head_dim).view(2, -1).T.flatten()
    heads = attention.q_proj.out_features // attention.head_dim
    return (torch.arange(heads)[:, None] * attention.head_dim + within).flatten()


def _head_norms(attention: Attention, order: Tensor) -> Tensor | None:
    """Weights of the queries' and keys' norms; None if there are none."""
    norms: list[nn.Module] = [attention.q_norm, attention.k_norm]
    weights = [next(norm.parameters(), None) for norm in norms]
    sizes = [
        part.out_features // attention.head_dim for part in (attention.q_proj, attention.k_proj)
    ]
    rows = [
        weight[order[: attention.head_dim]].expand(size, -1)
        for weight, size in zip(weights, sizes, strict=True)
        if weight is not None
    ]
    return torch.cat(rows) if rows else None

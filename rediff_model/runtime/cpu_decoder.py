"""The decoder as few large products with everything between them in place: for steps on a CPU.

The same function as `language.Decoder`, from copies of its weights: query, key and value in one
product, norms scaled into the product that follows them, and the two halves
of a rotary pair side by side, so that rotating is a complex product.

Shape suffixes: T packed rows, D hidden size, F intermediate size, H query heads, K key/value
heads, E head size, N outputs of a product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, cast

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rediff_model.language import Attend, Attention, LanguageModel, Layer

LARGEST = 1 << 30
"""Bytes of weights at most that are copied."""

PIECE = 64
"""Rows of a product at a time: as a batch of small products it is a tenth faster than as one."""

WIDE_ROWS = 128
"""Rows of SwiGLU at a time: gate and up of 512 of them would not fit the second cache."""

FEW_IDS = 8192
"""Vocabulary up to which the first layer's projections are kept for every id."""

BOUNDED = 60.0
"""Attention scores up to this need no shift before exp, in float32 either."""


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
    gate_DF: Tensor
    up_DF: Tensor
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
        scale_D = layer.post_attention_layernorm.weight
        return cls(
            project_DN=project_ND.T.contiguous(),
            bias_N=torch.cat((*(b[order[: len(b)]] for b in biases[:2]), biases[2]))
            if biases
            else None,
            norm_HE=_head_norms(attention, order),
            output_ND=attention.o_proj.weight.T.contiguous(),
            output_bias_D=attention.o_proj.bias,
            gate_DF=(mlp.gate_proj.weight * scale_D).T.contiguous(),
            up_DF=(mlp.up_proj.weight * scale_D).T.contiguous(),
            narrow_FD=mlp.down_proj.weight.T.contiguous(),
        )

    def largest_score(self, heads: int) -> float:
        """What no attention score exceeds; infinity without norms of queries and keys."""
        if self.norm_HE is None:
            return math.inf
        largest_H = self.norm_HE.abs().amax(dim=1)
        # A normed row is at most sqrt(E) long before its weights, and scores are over sqrt(E).
        most = largest_H[:heads].max() * largest_H[heads:].max() * self.norm_HE.shape[1] ** 0.5
        return float(most)


@dataclass(frozen=True, slots=True)
class LeanDecoder:
    """A copy of a model's weights; later changes of the model do not reach it."""

    layers: tuple[LeanLayer, ...]
    norm_D: Tensor
    head_DV: Tensor
    first_VN: Tensor | None
    """The first layer's queries, keys and values of every id, not yet rotated; None if there are
    too many ids."""
    bounded: bool
    """No attention score can be large: norms of queries and keys see to it."""
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
        layers = tuple(LeanLayer.of(cast("Layer", layer)) for layer in decoder.layers)
        lean = cls(
            layers=layers,
            norm_D=decoder.norm.weight.clone(),
            head_DV=model.lm_head.weight.T.contiguous(),
            first_VN=None,
            bounded=all(
                layer.largest_score(config.num_attention_heads) < BOUNDED for layer in layers
            ),
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            theta=config.rope_theta,
            eps=config.rms_norm_eps,
        )
        if config.vocab_size > FEW_IDS:
            return lean
        return replace(lean, first_VN=lean._project(layers[0], decoder.embed_tokens.weight))

    def __call__(
        self,
        hidden_TD: Tensor,
        positions_T: Tensor,
        attend: Attend,
        ids_T: Tensor | None = None,
    ) -> Tensor:
        """As `Decoder.forward`; overwrites `hidden_TD`.

        `ids_T` says of which ids the rows are the embeddings, if they all are.
        """
        rows = len(hidden_TD)
        rotated = self.heads + self.key_heads
        turn_T1E = self._turns(positions_T, hidden_TD.dtype)
        for number, layer in enumerate(self.layers):
            if number == 0 and ids_T is not None and self.first_VN is not None:
                mixed_TN = self.first_VN.index_select(0, ids_T)
            else:
                mixed_TN = self._project(layer, hidden_TD)
            heads_THE = mixed_TN.view(rows, -1, self.head_dim)
            turning_THE = heads_THE[:, :rotated]
            pairs = turning_THE.view(rows, rotated, -1, 2)
            torch.view_as_complex(pairs).mul_(turn_T1E)
            query_THE, key_TKE = turning_THE[:, : self.heads], turning_THE[:, self.heads :]
            seen_THE = attend(number, query_THE, key_TKE, heads_THE[:, rotated:])
            _add_product(hidden_TD, seen_THE.reshape(rows, -1), layer.output_ND)
            if layer.output_bias_D is not None:
                hidden_TD += layer.output_bias_D
            self._widen(layer, hidden_TD)
        return hidden_TD.mul_(self._scale(hidden_TD)).mul_(self.norm_D)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """As `LanguageModel.logits`."""
        return _product(hidden_TD, self.head_DV)

    def _project(self, layer: LeanLayer, hidden_TD: Tensor) -> Tensor:
        """Queries, keys and values before they are rotated, [T, N]."""
        mixed_TN = _product(hidden_TD * self._scale(hidden_TD), layer.project_DN)
        if layer.bias_N is not None:
            mixed_TN += layer.bias_N
        if layer.norm_HE is not None:
            heads_THE = mixed_TN.view(len(mixed_TN), -1, self.head_dim)
            turning_THE = heads_THE[:, : self.heads + self.key_heads]
            turning_THE *= self._scale(turning_THE)
            turning_THE *= layer.norm_HE
        return mixed_TN

    def _widen(self, layer: LeanLayer, hidden_TD: Tensor) -> None:
        """Add what SwiGLU makes of the normed rows, some at a time: the wide rows stay in cache."""
        shape = min(len(hidden_TD), WIDE_ROWS), layer.gate_DF.shape[1]
        gate_TF, up_TF = hidden_TD.new_empty(shape), hidden_TD.new_empty(shape)
        normed_TD = hidden_TD * self._scale(hidden_TD)
        pieces = (torch.split(rows, WIDE_ROWS) for rows in (hidden_TD, normed_TD))
        for rows_TD, input_TD in zip(*pieces, strict=True):
            gate, up = gate_TF[: len(rows_TD)], up_TF[: len(rows_TD)]
            functional.silu(torch.mm(input_TD, layer.gate_DF, out=gate), inplace=True)
            gate.mul_(torch.mm(input_TD, layer.up_DF, out=up))
            rows_TD.addmm_(gate, layer.narrow_FD)

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


def _product(rows_TX: Tensor, weight_XN: Tensor) -> Tensor:
    """The rows times a weight, [T, N]."""
    pieces = len(rows_TX) // PIECE
    if pieces < 2:
        return rows_TX @ weight_XN
    whole = pieces * PIECE
    product_TN = rows_TX.new_empty((len(rows_TX), weight_XN.shape[1]))
    torch.bmm(
        rows_TX[:whole].view(pieces, PIECE, -1),
        weight_XN.expand(pieces, -1, -1),
        out=product_TN[:whole].view(pieces, PIECE, -1),
    )
    if whole < len(rows_TX):
        torch.mm(rows_TX[whole:], weight_XN, out=product_TN[whole:])
    return product_TN


def _add_product(sum_TN: Tensor, rows_TX: Tensor, weight_XN: Tensor) -> None:
    """Add the rows times a weight."""
    pieces = len(rows_TX) // PIECE
    whole = pieces * PIECE if pieces > 1 else 0
    if whole:
        batch = rows_TX[:whole].view(pieces, PIECE, -1)
        sums = sum_TN[:whole].view(pieces, PIECE, -1)
        sums.baddbmm_(batch, weight_XN.expand(pieces, -1, -1))
    if whole < len(rows_TX):
        sum_TN[whole:].addmm_(rows_TX[whole:], weight_XN)


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

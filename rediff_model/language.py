"""The language model: a bidirectional Llama-shaped decoder over packed rows.

Shape suffixes: T rows of all sequences packed, H query heads, K key/value heads, E head size,
D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from rediff_model.config import LanguageConfig


class Attend(Protocol):
    """Who attends to whom: given one layer's projections, the attention output.

    An implementation knows how the packed rows fall into sequences and holds any cache.
    """

    def __call__(self, layer: int, query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor) -> Tensor:
        """Return the output, [T, H, E]."""
        ...


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in at least float32, cast back, then scaled."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden if hidden.dtype == torch.float64 else hidden.float()
        normed = functional.rms_norm(wide, (wide.shape[-1],), eps=self.eps)
        return self.weight * normed.to(hidden.dtype)


class Attention(nn.Module):
    """Projections and rotary positions; the attention itself is the caller's `attend`."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=bias)
        if config.qk_norm:
            self.q_norm: nn.Module = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm: nn.Module = RMSNorm(config.head_dim, config.rms_norm_eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def heads(
        self, hidden_TD: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [T, H, E] and keys [T, K, E], and values [T, K, E]."""
        rows = hidden_TD.shape[0]
        query_THE = self.q_norm(self.q_proj(hidden_TD).view(rows, -1, self.head_dim))
        key_TKE = self.k_norm(self.k_proj(hidden_TD).view(rows, -1, self.head_dim))
        value_TKE = self.v_proj(hidden_TD).view(rows, -1, self.head_dim)
        return rotate(query_THE, rotary), rotate(key_TKE, rotary), value_TKE

    def output(self, seen_THE: Tensor) -> Tensor:
        """What was attended to, back to rows [T, D]."""
        projected: Tensor = self.o_proj(seen_THE.reshape(seen_THE.shape[0], -1))
        return projected


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        gated: Tensor = self.down_proj(
            functional.silu(self.gate_proj(hidden_TD)) * self.up_proj(hidden_TD)
        )
        return gated


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.number = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, hidden_TD: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        query_THE, key_TKE, value_TKE = self.heads(hidden_TD, rotary)
        return self.widen(hidden_TD, attend(self.number, query_THE, key_TKE, value_TKE))

    def heads(
        self, hidden_TD: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Up to the attention: rotated queries and keys, and values."""
        return self.self_attn.heads(self.input_layernorm(hidden_TD), rotary)

    def widen(self, hidden_TD: Tensor, seen_THE: Tensor) -> Tensor:
        """From the attention on."""
        hidden_TD = hidden_TD + self.self_attn.output(seen_THE)
        output_TD: Tensor = hidden_TD + self.mlp(self.post_attention_layernorm(hidden_TD))
        return output_TD


class Decoder(nn.Module):
    """Embeddings, layers and the final norm; module names are the checkpoint's under `model.`."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_TD: Tensor,
        positions_T: Tensor,
        attend: Attend,
        collect: list[Tensor] | None = None,
    ) -> Tensor:
        """Run packed rows through all layers and the final norm.

        `positions_T` counts from 0 within each sequence. `collect` receives the rows after
        every layer, before the final norm.
        """
        rotary = rotary_table(
            positions_T, self.config.head_dim, self.config.rope_theta, hidden_TD.dtype
        )
        for layer in self.layers:
            hidden_TD = layer(hidden_TD, rotary, attend)
            if collect is not None:
                collect.append(hidden_TD)
        normed_TD: Tensor = self.norm(hidden_TD)
        return normed_TD


class LanguageModel(nn.Module):
    """The decoder and its head."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """[T, V] from rows after the final norm. Callers pass canvas rows only."""
        scores_TV: Tensor = self.lm_head(hidden_TD)
        return scores_TV


def rotary_table(
    positions_T: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [T, 1, E], of the two-halves rotary layout (RoFormer).

    Angles are float32 whatever the model's dtype (float64 for a float64 model): half precision
    would lose far positions.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    device = positions_T.device
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).to(wide) / head_dim
    angles = positions_T.to(wide)[:, None] * (1.0 / theta**exponents)[None]
    table = torch.cat((angles, angles), dim=-1)[:, None, :]
    return table.cos().to(dtype), table.sin().to(dtype)


def rotate(heads_THE: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to queries or keys."""
    cosine, sine = rotary
    first, second = heads_THE.chunk(2, dim=-1)
    return heads_THE * cosine + torch.cat((-second, first), dim=-1) * sine

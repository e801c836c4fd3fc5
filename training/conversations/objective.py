"""The training objective on conversations: noise, one pass over packed rows, loss by part.

Shape suffixes: B samples, L rows of the longest sample, T packed rows of all samples, N rows that
carry loss, D hidden size, V vocabulary, H/K query and key/value heads, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rediff_model.language import rotary_table
from rediff_model.runtime.attention import DenseAttend
from rediff_model.vision.tiling import merge
from training.data.collate import embed
from training.data.sample import NO_TOKEN
from training.loss.masked_diffusion import PARTS, loss, noise
from training.loss.random_draws import Draws, draw
from training.loss.replacement import Mix, replacements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rediff_model.language import Attend
    from rediff_model.model import CaptionModel
    from training.conversations.batches import DialogueBatch
    from training.loss.masked_diffusion import Noised, Objective


CHECKPOINTED_TILES = 4
"""Tiles whose insides are held at a time: those of a whole picture would fill a GPU."""


@dataclass(frozen=True, slots=True)
class SampleAttend:
    """Packed samples of different lengths, each attending to itself.

    With `prompts`, so many first rows of each sample attend to each other only. No row is padding,
    so no mask is needed.
    """

    lengths: tuple[int, ...]
    prompts: tuple[int, ...] | None = None

    def __call__(self, layer: int, query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor) -> Tensor:
        dense = DenseAttend(1)
        prompts = self.prompts or (0,) * len(self.lengths)
        split = (torch.split(rows, list(self.lengths)) for rows in (query_THE, key_TKE, value_TKE))
        outputs = []
        for prompt, query, key, value in zip(prompts, *split, strict=True):
            if 0 < prompt < len(query):
                outputs.append(dense(layer, query[:prompt], key[:prompt], value[:prompt]))
                query = query[prompt:]
            outputs.append(dense(layer, query, key, value))
        return torch.cat(outputs)


@dataclass(frozen=True, slots=True)
class Chance:
    """Where a run's random numbers come from."""

    seed: int
    random_ids: tuple[int, int]
    """Half-open range of the ids that replace tokens."""
    stutter: float = 0.0
    """Share of the replacements that repeat the token before."""
    confusion: float = 0.0
    """Share of them that are a weaker draft's."""

    def draws(self, ids_BL: Tensor, keys_B: Tensor, others_BL: Tensor | None = None) -> Draws:
        """All draws of a batch; they depend on the samples' keys only.

        `others_BL` holds the tokens of weaker drafts, negative where there are none.
        """
        drawn = draw(keys_B, ids_BL.shape[1], self.seed, self.random_ids)
        if not (self.stutter or self.confusion):
            return drawn
        rest = max(0.0, 1 - self.stutter - self.confusion)
        mix = Mix(random=rest, other=self.confusion, previous=self.stutter)
        if others_BL is None:
            others_BL = torch.full_like(ids_BL, NO_TOKEN)
        ids_BL = replacements(ids_BL, others_BL, keys_B, self.seed, mix, self.random_ids)
        return Draws(drawn.rate_B, drawn.mask_BL, drawn.replace_BL, ids_BL)


class DialogueObjective(nn.Module):
    """The loss of `training.loss.masked_diffusion` for a captioner of any kind."""

    def __init__(
        self, captioner: CaptionModel, objective: Objective, chance: Chance, *, checkpointing: bool
    ) -> None:
        super().__init__()
        self.captioner = captioner
        self.objective = objective
        self.chance = chance
        self.checkpointing = checkpointing

    @property
    def device(self) -> torch.device:
        return self.captioner.device

    def forward(self, batch: DialogueBatch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The sum of the samples' losses, and (nats, tokens) of each part."""
        rows = batch.rows
        draws = self.chance.draws(rows.ids_BL, batch.keys_B, rows.others_BL)
        noised = noise(rows.ids_BL, rows.labels_BL, rows.revise_BL, draws, self.objective)
        result = loss(self.logits(batch, noised), noised)
        parts = {
            f"loss_{part}": (nats, tokens)
            for part, nats, tokens in zip(PARTS, result.nats_P, result.tokens_P, strict=True)
        }
        return result.total * len(batch.keys_B), parts

    def logits(self, batch: DialogueBatch, noised: Noised) -> Tensor:
        """[N, V] logits of the rows that carry loss."""
        decoder, rows = self.captioner.model, batch.rows
        samples, longest = rows.ids_BL.shape
        features, unused = self._features(batch)
        embeds_BLD = embed(noised.ids_BL, decoder.embed_tokens, features) + unused
        if rows.allowed_BL is None:
            kept_BL = torch.ones_like(rows.ids_BL, dtype=torch.bool)
        else:
            kept_BL = rows.allowed_BL
        lengths = tuple(kept_BL.sum(dim=1).tolist())
        prefix = self.captioner.config.language.prefix_attention == "prefix"
        attend = SampleAttend(lengths, rows.prompt_lengths if prefix else None)
        positions_BL = torch.arange(longest, device=self.device).expand(samples, -1)
        hidden_TD = self._decode(embeds_BLD[kept_BL], positions_BL[kept_BL], attend)
        places_T = kept_BL.flatten().cumsum(0) - 1
        return self.captioner.logits(hidden_TD[places_T[noised.rows_N]])

    def _decode(self, hidden_TD: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        """`Decoder.forward`, with layers computed again in the backward pass if wanted."""
        decoder = self.captioner.model
        if not (self.checkpointing and torch.is_grad_enabled()):
            return cast("Tensor", decoder(hidden_TD, positions_T, attend))
        shape = decoder.config
        rotary = rotary_table(positions_T, shape.head_dim, shape.rope_theta, hidden_TD.dtype)
        for layer in decoder.layers:
            hidden_TD = checkpoint(layer, hidden_TD, rotary, attend, use_reentrant=False)
        return cast("Tensor", decoder.norm(hidden_TD))

    def _features(self, batch: DialogueBatch) -> tuple[Sequence[Tensor | None], Tensor | float]:
        """Each sample's picture, [L, D], and a zero that ties a batch without any to the tower.

        Every process must give a gradient to every weight, or data parallelism waits for ever.
        """
        pictures = [
            (tiles, plan)
            for tiles, plan in zip(batch.tiles, batch.plans, strict=True)
            if tiles is not None and plan is not None
        ]
        if not pictures:
            side = self.captioner.config.vision.image_size
            blank = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=self.device)
            unused = self.captioner.encode_tiles(blank).sum() + self.captioner.newline_D.sum()
            return [None] * len(batch.tiles), unused * 0
        rows_NPD = self._encode(torch.cat([tiles for tiles, _ in pictures]))
        parts = torch.split(rows_NPD, [len(tiles) for tiles, _ in pictures])
        merged = iter(
            merge(part, plan, self.captioner.newline_D)
            for part, (_, plan) in zip(parts, pictures, strict=True)
        )
        return [None if tiles is None else next(merged) for tiles in batch.tiles], 0.0

    def _encode(self, tiles_N3TT: Tensor) -> Tensor:
        """Rows of all tiles, [N, P, D], a few tiles at a time when insides are computed again."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return self.captioner.encode_tiles(tiles_N3TT)
        return torch.cat(
            [
                checkpoint(self.captioner.encode_tiles, chunk, use_reentrant=False)
                for chunk in torch.split(tiles_N3TT, CHECKPOINTED_TILES)
            ]
        )

"""Noising and the masked-diffusion loss over masked, replaced, clean and corrected rows.

All functions work on ids and logits, not on a model: rows may be whole sequences or canvases
alone. Rows with negative ids (pictures, padding) are never noised.

Shape suffixes: B samples, L rows of a sample, N rows that carry loss, V vocabulary, P parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from rediff_model.sampling.params import Compat
from training.loss.official import LOSS_DEFECTS

if TYPE_CHECKING:
    from training.loss.official import LossDefect
    from training.loss.random_draws import Draws

Part = Literal["masked", "replaced", "clean", "pair"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Order of the part index; rows without loss have index -1."""

IGNORE = -100
"""The label of a row that is not trained."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What to draw and how to weigh it.

    With V the trained rows of an ordinary sample, p its masking rate and c the cross entropy,
    the default is, with M masked, Q replaced and O untouched rows,

        w_masked / (max(p, rate_floor) |V|) sum_M c + w_replaced mean_Q c + w_clean mean_O c

    whose first term is the bound of LLaDA (arXiv 2502.09992); for a sample with flagged pair rows
    R it is w_pair mean_R c, and nothing of it is masked or replaced. The official loss is
    1/p (mean_M c + mean_Q c + mean_O c) and 1/p mean_R c.
    """

    mask_id: int
    replace_rate: float = 0.05
    """Share of unmasked trained rows that get another id."""
    epsilon: float = 1e-3
    """Lowest masking rate."""
    rate_floor: float = 0.0
    """Lowest rate in the weight of masked rows; tames the variance of nearly unmasked samples."""
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """Of the parts, in the order of `PARTS`."""
    refine: bool = True
    """False: plain denoising, the masked part only, towards the corrected text of pair samples
    (official: pair samples carry no loss)."""
    compat: Compat = "default"
    defects: frozenset[LossDefect] = frozenset()
    """Of the official loss, repeated by default; `compat="official"` repeats them all, and more."""

    def __post_init__(self) -> None:
        if self.defects and (self.compat == "official" or not self.refine):
            raise ValueError(
                f"defects {sorted(self.defects)} are for the default losses with refine, "
                f"got compat {self.compat!r} and refine {self.refine}"
            )
        if not 0 <= self.replace_rate <= 1:
            raise ValueError(f"replace_rate must lie in [0, 1], got {self.replace_rate}")
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon must lie in (0, 1], got {self.epsilon}")
        if not 0 <= self.rate_floor <= 1:
            raise ValueError(f"rate_floor must lie in [0, 1], got {self.rate_floor}")
        if min(self.weights) < 0 or len(self.weights) != len(PARTS):
            raise ValueError(f"weights must be {len(PARTS)} numbers from 0, got {self.weights}")
        if self.compat not in get_args(Compat):
            raise ValueError(f"compat must be default or official, got {self.compat!r}")
        if self.compat == "official" and (self.rate_floor or self.weights != (1.0,) * len(PARTS)):
            raise ValueError(
                f"compat official has no rate_floor and no weights, "
                f"got {self.rate_floor} and {self.weights}"
            )


@dataclass(frozen=True, slots=True)
class Noised:
    """A batch after noising."""

    ids_BL: Tensor
    """What the model sees."""
    labels_BL: Tensor
    part_BL: Tensor
    """Index into `PARTS`, -1 without loss."""
    weight_BL: Tensor
    """Of the row's cross entropy in its sample's loss."""
    rate_B: Tensor
    """Masking rate p."""
    rows_N: Tensor
    """Flat indices, into B x L, of the rows that carry loss: only these need logits."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of a batch, and what is needed to log it by part, over processes too."""

    total: Tensor
    """Mean over the samples of the batch; a scalar with a gradient."""
    nats_P: Tensor
    """Summed cross entropy of each part, unweighted, without gradient."""
    tokens_P: Tensor
    """Rows of each part."""

    def means(self) -> dict[Part, float]:
        """Cross entropy a token of each part that has any; copies to the host."""
        nats, tokens = self.nats_P.tolist(), self.tokens_P.tolist()
        return {
            part: total / count
            for part, total, count in zip(PARTS, nats, tokens, strict=True)
            if count
        }


def noise(
    ids_BL: Tensor, labels_BL: Tensor, revise_BL: Tensor, draws: Draws, objective: Objective
) -> Noised:
    """Mask and replace trained rows, and decide which row carries which loss.

    `labels_BL` holds `IGNORE` where nothing is trained; `revise_BL` flags the wrong segments of
    pair samples, whose labels are the corrections.
    """
    if objective.compat == "default" and not objective.refine:
        ids_BL = torch.where(revise_BL & (labels_BL != IGNORE), labels_BL, ids_BL)
        revise_BL = torch.zeros_like(revise_BL)
    rate_B = (1 - objective.epsilon) * draws.rate_B + objective.epsilon
    ordinary_B1 = ~revise_BL.any(dim=1, keepdim=True)
    trained_BL = labels_BL != IGNORE
    if objective.compat == "default":
        # A mask is never the right answer, and training towards it would keep it in captions.
        trained_BL = trained_BL & (ids_BL >= 0) & (labels_BL != objective.mask_id)
    masked_BL = trained_BL & ordinary_B1 & (draws.mask_BL < rate_B[:, None])
    replaced_BL = (
        trained_BL & ordinary_B1 & ~masked_BL & (draws.replace_BL < objective.replace_rate)
    )
    if not objective.refine:
        replaced_BL = torch.zeros_like(replaced_BL)
    elif objective.compat == "default":
        # Replaced by itself is clean: matters when replacements come from similar captions.
        replaced_BL = replaced_BL & (draws.ids_BL != ids_BL)
    noised_BL = torch.where(replaced_BL, draws.ids_BL.to(ids_BL.dtype), ids_BL)
    noised_BL = noised_BL.masked_fill(masked_BL, objective.mask_id)
    if objective.compat == "official":
        # The official loss finds masks by their embedding, so that mask ids of the text join.
        masked_BL = noised_BL == objective.mask_id
    clean_BL = trained_BL & ~(masked_BL | replaced_BL)
    parts = (
        masked_BL & ordinary_B1 if objective.refine else masked_BL,
        replaced_BL & ordinary_B1,
        clean_BL & ordinary_B1 & objective.refine,
        revise_BL & objective.refine,
    )
    return _weigh(noised_BL, labels_BL, trained_BL, parts, rate_B, objective)


def _weigh(
    noised_BL: Tensor,
    labels_BL: Tensor,
    trained_BL: Tensor,
    parts: tuple[Tensor, ...],
    rate_B: Tensor,
    objective: Objective,
) -> Noised:
    official = objective.compat == "official"
    defects = LOSS_DEFECTS if official else objective.defects
    by_rate = {
        "masked": True,
        "replaced": "kept_rate" in defects,
        "clean": "kept_rate" in defects,
        "pair": "pair_rate" in defects,
    }
    own_mean = "masked_mean" in defects and objective.refine
    per_rate_B = 1 / rate_B.clamp(min=objective.rate_floor)
    part_BL = torch.full_like(labels_BL, -1)
    weight_BL = torch.zeros(labels_BL.shape, dtype=rate_B.dtype, device=labels_BL.device)
    for index, (name, flagged_BL, factor) in enumerate(
        zip(PARTS, parts, objective.weights, strict=True)
    ):
        members_BL = flagged_BL & trained_BL
        # The official means count unlabelled members too, which add nothing to the sum.
        counted_BL = flagged_BL if official else members_BL
        if name == "masked" and not own_mean:
            counted_BL = trained_BL
        scale_B = factor / counted_BL.sum(dim=1).clamp(min=1)
        if by_rate[name]:
            scale_B = scale_B * per_rate_B
        part_BL = part_BL.masked_fill(members_BL, index)
        weight_BL = torch.where(members_BL, scale_B[:, None], weight_BL)
    rows_N = (weight_BL > 0).flatten().nonzero()[:, 0]
    return Noised(noised_BL, labels_BL, part_BL, weight_BL, rate_B, rows_N)


def loss(logits_NV: Tensor, noised: Noised, token_weight_BL: Tensor | None = None) -> Loss:
    """The weighted cross entropy of the rows `noised.rows_N`, in float32 at least.

    `token_weight_BL` multiplies rows, for instance content words against end-of-text. The result
    is divided by the number of samples only, so equal shares of a batch on several processes
    average to the loss of the whole.

    Raises:
        ValueError: logits of another number of rows.
    """
    if logits_NV.shape[0] != noised.rows_N.shape[0]:
        raise ValueError(
            f"{noised.rows_N.shape[0]} rows carry loss, got logits of {logits_NV.shape[0]}"
        )
    labels_N = noised.labels_BL.flatten()[noised.rows_N].long()
    weight_N = noised.weight_BL.flatten()[noised.rows_N]
    if token_weight_BL is not None:
        weight_N = weight_N * token_weight_BL.flatten()[noised.rows_N]
    wide_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    nats_N = functional.cross_entropy(wide_NV, labels_N, reduction="none")
    part_N = noised.part_BL.flatten()[noised.rows_N].long()
    zeros_P = nats_N.new_zeros(len(PARTS))
    return Loss(
        total=(nats_N * weight_N).sum() / noised.ids_BL.shape[0],
        nats_P=zeros_P.index_add(0, part_N, nats_N.detach()),
        tokens_P=zeros_P.index_add(0, part_N, torch.ones_like(nats_N)),
    )

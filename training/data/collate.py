"""Samples as a batch: pictures inserted, rows padded, flags kept on their tokens.

Shape suffixes: B samples, L rows of the longest sample, N rows of a picture, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from training.data.problems import BadRow
from training.data.sample import IMAGE_ID, NO_TOKEN
from training.loss.masked_diffusion import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from rediff_model.sampling.params import Compat
    from training.data.sample import Sample

T = TypeVar("T")

NOTHING_ID = -1
"""A padded row: its embedding is zero."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Collated samples."""

    ids_BL: Tensor
    """`IMAGE_ID` on every row of a picture, `NOTHING_ID` on padding."""
    labels_BL: Tensor
    revise_BL: Tensor
    allowed_BL: Tensor | None
    """Rows that may be attended to; None for all, as the official code has it."""
    prompt_lengths: tuple[int, ...]
    """Rows before each sample's first answer."""
    image_rows: tuple[int, ...]
    """Rows of each sample's picture that are in the batch."""
    others_BL: Tensor | None = None
    """Tokens of weaker drafts, negative where there are none; None where no sample has a draft."""


def collate(
    samples: Sequence[Sample],
    image_rows: Sequence[int],
    *,
    pad_id: int,
    max_length: int | None = None,
    compat: Compat = "default",
) -> Batch:
    """Insert `image_rows[i]` rows for the picture of sample i, cut at `max_length`, pad right.

    By default padding is neither trained nor attended to. `compat="official"` first pads ids and
    labels with `pad_id`, so that shorter samples train and attend to it, and shifts all flags by
    the rows that pictures add to the *longest* sample, which is wrong for the others.

    Raises:
        ValueError: not one number of picture rows a sample.
        BadRow: `truncated`, by `require_trained`.
    """
    if len(samples) != len(image_rows):
        raise ValueError(f"{len(samples)} samples, but picture rows of {len(image_rows)}")
    if compat == "official":
        return _official(samples, image_rows, pad_id, max_length)
    for sample, rows in zip(samples, image_rows, strict=True):
        require_trained(sample, rows, max_length)
    expanded = [
        tuple(
            _expand(sample.ids, values, rows, fill)[:max_length]
            for values, fill in (
                (sample.ids, IMAGE_ID),
                (sample.labels, IGNORE),
                (sample.revise, False),
            )
        )
        for sample, rows in zip(samples, image_rows, strict=True)
    ]
    length = max(len(ids) for ids, _, _ in expanded)
    ids_BL = torch.tensor([_pad(ids, length, NOTHING_ID) for ids, _, _ in expanded])
    return Batch(
        ids_BL=ids_BL,
        labels_BL=torch.tensor([_pad(labels, length, IGNORE) for _, labels, _ in expanded]),
        revise_BL=torch.tensor([_pad(flags, length, False) for _, _, flags in expanded]),
        allowed_BL=ids_BL != NOTHING_ID,
        prompt_lengths=_prompt_lengths(samples, image_rows),
        image_rows=_counts(ids_BL),
        others_BL=_others(samples, image_rows, length),
    )


def require_trained(sample: Sample, image_rows: int, max_length: int | None) -> None:
    """Check that a sample cut at `max_length` still has something to train.

    A pair sample must keep a flag: without one it would pass for an ordinary sample, and train
    towards the wrong caption.

    Raises:
        BadRow: `truncated`.
    """
    labels = _expand(sample.ids, sample.labels, image_rows, IGNORE)[:max_length]
    flags = _expand(sample.ids, sample.revise, image_rows, False)[:max_length]
    if not (any(flags) if sample.is_pair else any(label != IGNORE for label in labels)):
        raise BadRow("truncated", sample.where, f"nothing trained within {max_length} rows")


def embed(ids_BL: Tensor, embedding: nn.Embedding, features: Sequence[Tensor | None]) -> Tensor:
    """[B, L, D] embeddings: tokens looked up, pictures put in place, padding zero.

    `features` holds a sample's picture rows [N, D], or None; rows that were cut off are left out.

    Raises:
        ValueError: fewer picture rows than the batch has place for.
    """
    embeds_BLD: Tensor = embedding(ids_BL.clamp(min=0)) * (ids_BL != NOTHING_ID)[..., None]
    is_image_BL = ids_BL == IMAGE_ID
    pieces = []
    for rows, feature_ND in zip(_counts(ids_BL), features, strict=True):
        given = 0 if feature_ND is None else feature_ND.shape[0]
        if given < rows:
            raise ValueError(f"a picture of {given} rows for {rows} places")
        if feature_ND is not None:
            pieces.append(feature_ND[:rows])
    if not pieces:
        return embeds_BLD
    return embeds_BLD.masked_scatter(is_image_BL[..., None], torch.cat(pieces).to(embeds_BLD.dtype))


def _official(
    samples: Sequence[Sample], image_rows: Sequence[int], pad_id: int, max_length: int | None
) -> Batch:
    longest = min(max(len(sample.ids) for sample in samples), max_length or 10**9)
    ids, labels = [], []
    for sample, rows in zip(samples, image_rows, strict=True):
        padded = _pad(sample.ids[:longest], longest, pad_id)
        ids.append(_expand(padded, padded, rows, IMAGE_ID)[:max_length])
        targets = _pad(sample.labels[:longest], longest, pad_id)
        labels.append(_expand(padded, targets, rows, IGNORE)[:max_length])
    length = max(len(row) for row in ids)
    ids_BL = torch.tensor([_pad(row, length, NOTHING_ID) for row in ids])
    shift = [False] * (length - longest)
    flags = [_pad(sample.revise[:longest], longest, False) for sample in samples]
    return Batch(
        ids_BL=ids_BL,
        labels_BL=torch.tensor([_pad(row, length, IGNORE) for row in labels]),
        revise_BL=torch.tensor([shift + row for row in flags]),
        allowed_BL=None,
        prompt_lengths=_prompt_lengths(samples, image_rows),
        image_rows=_counts(ids_BL),
    )


def _others(samples: Sequence[Sample], image_rows: Sequence[int], length: int) -> Tensor | None:
    if not any(sample.others for sample in samples):
        return None
    expanded = [
        _expand(sample.ids, sample.others or [NO_TOKEN] * len(sample.ids), rows, NO_TOKEN)[:length]
        for sample, rows in zip(samples, image_rows, strict=True)
    ]
    return torch.tensor([_pad(others, length, NO_TOKEN) for others in expanded])


def _expand(ids: Sequence[int], values: Sequence[T], image_rows: int, fill: T) -> list[T]:
    """`values` with the place of the picture in `ids` widened to `image_rows` times `fill`."""
    out: list[T] = []
    for token, value in zip(ids, values, strict=True):
        if token == IMAGE_ID:
            out += [fill] * image_rows
        else:
            out.append(value)
    return out


def _pad(values: Sequence[T], length: int, fill: T) -> list[T]:
    return [*values, *[fill] * (length - len(values))]


def _prompt_lengths(samples: Sequence[Sample], image_rows: Sequence[int]) -> tuple[int, ...]:
    return tuple(
        sample.prompt_length + (rows - 1) * sample.ids[: sample.prompt_length].count(IMAGE_ID)
        for sample, rows in zip(samples, image_rows, strict=True)
    )


def _counts(ids_BL: Tensor) -> tuple[int, ...]:
    return tuple((ids_BL == IMAGE_ID).sum(dim=1).tolist())

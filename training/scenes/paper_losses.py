"""Training canvases of the sticker scenes with the paper's losses, for comparison.

`canvases.py` is what the shipped model learns from; here noise and weights are those of
`training.loss.masked_diffusion`, which know nothing of content words.

Shape suffixes: C canvas positions, N canvases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from training.loss.masked_diffusion import IGNORE, Objective, noise
from training.loss.masked_diffusion import PARTS as LOSS_PARTS
from training.loss.official import LOSS_DEFECTS
from training.loss.random_draws import draw
from training.scenes.canvases import END_SLOT, PARTS, Canvases, Mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.loss.official import Defect
    from training.scenes.canvases import CanvasBuilder
    from training.stickers.graph import Scene

SPOILT = 0.5
"""Share of the pair samples that `lost_pairs` and `shifted_flags` touch. How many the official code
would depends on the data."""


def paper_canvases(
    builder: CanvasBuilder,
    scenes: Sequence[Scene],
    per_scene: int,
    mix: Mix,
    rng: np.random.Generator,
    compat: Literal["default", "official"],
    defects: Sequence[Defect] = (),
) -> Canvases:
    """Canvases with the official loss, or the mended one, in place of the builder's own.

    Of `mix` only `pair` and the middle of `replace_low` and `replace_high`, times `replace`, are
    used: the paper has one rate. Officially the stops behind a caption are trained like words; by
    default only the first one is. By default `defects` are repeated, see `training.loss.official`.
    """
    # Nothing masked or replaced yet, so that inputs and targets differ in pairs alone.
    plain = builder.build(scenes, per_scene, Mix(pair=mix.pair, unmasked=True), rng)
    targets_NC = torch.from_numpy(plain.targets_NC)
    inputs_NC = torch.from_numpy(plain.inputs_NC)
    flags_NC = inputs_NC != targets_NC
    if "lost_pairs" in defects:
        lost_N1 = _some(len(targets_NC), rng)
        targets_NC = torch.where(lost_N1, inputs_NC, targets_NC)
        flags_NC = flags_NC & ~lost_N1
    if "shifted_flags" in defects:
        elsewhere_NC = flags_NC.roll(int(rng.integers(1, builder.length)), dims=1)
        flags_NC = torch.where(_some(len(targets_NC), rng), elsewhere_NC, flags_NC)
    labels_NC = targets_NC.clone()
    if compat == "default" and "trained_padding" not in defects:
        end_NC = plain.slots_NC == END_SLOT
        behind_NC = end_NC & (np.cumsum(end_NC, axis=1) > 1)
        labels_NC[torch.from_numpy(behind_NC)] = IGNORE
    objective = Objective(
        mask_id=builder.mask_id,
        replace_rate=mix.replace * (mix.replace_low + mix.replace_high) / 2,
        rate_floor=0.0,
        compat=compat,
        defects=LOSS_DEFECTS.intersection(defects),
    )
    keys_N = torch.from_numpy(rng.integers(0, 2**40, len(targets_NC)))
    draws = draw(keys_N, builder.length, 0, builder.word_ids)
    noised = noise(inputs_NC, labels_NC, flags_NC, draws, objective)
    number = np.array([PARTS.index(part) for part in LOSS_PARTS])
    part_NC = noised.part_BL.numpy()
    return Canvases(
        inputs_NC=noised.ids_BL.numpy(),
        targets_NC=targets_NC.numpy(),
        weights_NC=noised.weight_BL.float().numpy(),
        parts_NC=np.where(part_NC >= 0, number[part_NC], 0),
        slots_NC=plain.slots_NC,
        places_NC=plain.places_NC,
        place_weights_NC=plain.place_weights_NC,
        fill_N=plain.fill_N,
    )


def _some(canvases: int, rng: np.random.Generator) -> torch.Tensor:
    """[N, 1]: which canvases a defect of the samples touches."""
    return torch.from_numpy(rng.random((canvases, 1)) < SPOILT)

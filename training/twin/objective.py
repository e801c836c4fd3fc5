"""Next-token cross entropy on captions of sticker scenes, with cached tower features.

The decoder, the prompt and the shapes of a step are those of `training.scenes.objective`; only who
attends to whom and what stands at the inputs differ. So a step costs what one of Stage I costs.

Shape suffixes: B pictures, P cells of a picture, F feature channels, C caption positions,
N captions, Q prompt rows, D hidden size, T packed rows, V vocabulary, H heads, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from training.scenes.canvases import END_SLOT, NOWHERE, Canvases
from training.scenes.objective import SceneBatch, SceneObjective, by_slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rediff_model.model import CaptionModel
    from training.scenes.objective import Text


@dataclass(slots=True)
class CausalAttend:
    """Equally long sequences whose rows attend to themselves, to rows before them and to a prefix.

    `prefix` holds keys and values a layer, [N, H, Q, E]; `keys` and `values` are kept for the rows
    of this pass, so that they can be the next one's prefix.
    """

    sequences: int
    prefix: tuple[list[Tensor], list[Tensor]] | None = None
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def __call__(self, layer: int, query_THE: Tensor, key_TKE: Tensor, value_TKE: Tensor) -> Tensor:
        query, key, value = (
            rows.view(self.sequences, -1, *rows.shape[1:]).transpose(1, 2)
            for rows in (query_THE, key_TKE, value_TKE)
        )
        self.keys.append(key)
        self.values.append(value)
        if self.prefix is not None:
            key = torch.cat((self.prefix[0][layer], key), dim=2)
            value = torch.cat((self.prefix[1][layer], value), dim=2)
        return _attend(query, key, value)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention, the last query at the last key, back to packed rows [T, H, E].

    In float32 on a CPU, for the reason given in `rediff_model.runtime.attention`.
    """
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return _attend(query.float(), key.float(), value.float())
    rows, columns = query.shape[2], key.shape[2]
    seen = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
    output = scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return output.transpose(1, 2).flatten(0, 1)


class TwinObjective(SceneObjective):
    """Weighted cross entropy of the next token at every position of the captions.

    The inputs of a batch are shifted (`as_batch`): the prompt's last token, then the caption
    without its last one.
    """

    def __init__(
        self,
        model: CaptionModel,
        before: Sequence[int],
        after: Sequence[int],
        *,
        compiled: bool,
        places: bool = False,
    ) -> None:
        super().__init__(model, before, after, compiled=compiled, places=places)
        self.last_prompt_id = after[-1]

    def parts(self, batch: SceneBatch) -> dict[str, Tensor]:
        """All words, and the content words among them."""
        return {"words": batch.weights_NC > 0, "content": batch.slots_NC > 0}

    def logits(
        self,
        features_BPF: Tensor,
        inputs_NC: Tensor,
        states: list[Tensor] | None = None,
        text: Text | None = None,
    ) -> Tensor:
        """Logits of what follows each input, [N x C, V]; `states` receives every layer's rows."""
        decoder = self.captioner.model
        pictures, captions = len(features_BPF), len(inputs_NC)
        prompt_BQD = self.prompt(features_BPF, text)[:, :-1]
        rows = prompt_BQD.shape[1]
        positions_Q = torch.arange(rows, device=features_BPF.device)
        attend = CausalAttend(pictures)
        decoder(prompt_BQD.flatten(0, 1), positions_Q.repeat(pictures), attend)
        repeat = captions // pictures
        prefix = (
            [key.repeat_interleave(repeat, 0) for key in attend.keys],
            [value.repeat_interleave(repeat, 0) for value in attend.values],
        )
        positions_C = rows + torch.arange(inputs_NC.shape[1], device=features_BPF.device)
        hidden_TD = decoder(
            decoder.embed_tokens(inputs_NC.flatten()),
            positions_C.repeat(captions),
            CausalAttend(captions, prefix),
            collect=states,
        )
        return self.captioner.logits(hidden_TD)

    def as_batch(self, features_BPF: Tensor, canvases: Canvases) -> SceneBatch:
        """Unmasked canvases as inputs shifted by one; of the stop tokens only the first counts."""
        batch = SceneBatch.of(features_BPF, canvases)
        first = self.last_prompt_id
        ended_NC = batch.slots_NC == END_SLOT
        weights_NC = batch.weights_NC.masked_fill(_moved(ended_NC, fill=0), 0.0)
        return SceneBatch(
            batch.features_BPF,
            _moved(batch.targets_NC, fill=first),
            batch.targets_NC,
            weights_NC,
            batch.parts_NC,
            batch.slots_NC,
            _moved(batch.places_NC, fill=NOWHERE),
            _moved(batch.place_weights_NC, fill=0),
            batch.fill_N,
        )


def _moved(values_NC: Tensor, *, fill: int) -> Tensor:
    """Every row one position later; the last value is dropped."""
    moved_NC = values_NC.roll(1, dims=1)
    moved_NC[:, 0] = fill
    return moved_NC


@torch.inference_mode()
def next_token_accuracy(objective: TwinObjective, batch: SceneBatch) -> dict[str, float]:
    """Accuracy of content words, slot by slot, each after the right words before it.

    `slot_mean` is the mean over the slots; `shuffled_loss_gap` how much the loss of content words
    rises when every picture gets its neighbour's features: zero means that it is not looked at.
    The captions' own choices (which relation comes next, which wording of a place) bound it.
    """
    batch = batch.to(objective.device)
    return by_slot(objective, batch, batch.inputs_NC)

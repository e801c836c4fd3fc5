"""The training objective on sticker scenes with cached tower features.

Shape suffixes: B pictures, P cells of a picture, F feature channels, C canvas positions,
N canvases, Q prompt rows, D hidden size, V vocabulary, Y places.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm

from rediff_model.chat_template import asked, conversation
from rediff_model.runtime.attention import DenseAttend, PrefixAttend
from training.loss.on_policy import OnPolicy, entropy, fill_factors, fill_masks
from training.scenes.canvases import (
    CLEAN,
    END_SLOT,
    NAME_SLOTS,
    NOT_OWN,
    NOWHERE,
    PARTS,
    PLACES,
    RELATION_SLOTS,
    REPLACED,
    Canvases,
)
from training.stickers.templates import SLOTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rediff_model.chat_template import Question, TextCodec
    from rediff_model.model import CaptionModel


class Text(NamedTuple):
    """Ids of a prompt's text, each [Q], before and after the picture."""

    before_Q: Tensor
    after_Q: Tensor

    @classmethod
    def of(cls, codec: TextCodec, question: Question) -> Self:
        before, after = codec.encode_prompt(conversation(asked(question)))
        return cls(torch.tensor(before, dtype=torch.long), torch.tensor(after, dtype=torch.long))

    def to(self, device: torch.device) -> Self:
        return type(self)(*(ids_Q.to(device) for ids_Q in self))


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """Features of B pictures and their N canvases, picture by picture."""

    features_BPF: Tensor
    inputs_NC: Tensor
    targets_NC: Tensor
    weights_NC: Tensor
    parts_NC: Tensor
    slots_NC: Tensor
    places_NC: Tensor
    place_weights_NC: Tensor
    fill_N: Tensor
    text: Text | None = None
    """What every picture of the batch is asked; None is what the objective was given."""

    @classmethod
    def of(cls, features_BPF: Tensor, canvases: Canvases, text: Text | None = None) -> Self:
        arrays = {
            item.name: torch.from_numpy(getattr(canvases, item.name)) for item in fields(Canvases)
        }
        return cls(features_BPF, **arrays, text=text)

    def weight(self) -> float:
        return float(self.weights_NC.sum())

    def to(self, device: torch.device) -> Self:
        moved = {
            item.name: getattr(self, item.name).to(device)
            for item in fields(self)
            if item.name != "text"
        }
        return type(self)(**moved, text=self.text and self.text.to(device))


class SceneObjective(nn.Module):
    """Weighted cross entropy of the canvases; the prompt's rows are computed once a picture.

    With `places`, a head that is thrown away reads from the middle layer, at every visible token
    of a sticker's name, where that sticker is. Whether one thing is left of another can only be
    learnt where names know their places, and from captions alone that is not learnt in time. The
    optimisers (`training.scenes.stage1.optimizers`) leave the head as it was drawn: the layers
    learn to write what it reads.

    With `on_policy`, canvases with a fill share are filled by the model itself before the loss, and
    what it predicts rightly of own captions is trained to be sure.
    """

    def __init__(
        self,
        model: CaptionModel,
        before: Sequence[int],
        after: Sequence[int],
        *,
        compiled: bool,
        places: bool = False,
        on_policy: OnPolicy | None = None,
    ) -> None:
        super().__init__()
        self.captioner = model
        self.on_policy = on_policy
        self.places: nn.Linear | None = None
        if places:
            self.places = nn.Linear(model.config.language.hidden_size, PLACES, device=model.device)
        self.before_Q: Tensor
        self.after_Q: Tensor
        self.register_buffer("before_Q", torch.tensor(before), persistent=False)
        self.register_buffer("after_Q", torch.tensor(after), persistent=False)
        self.run = torch.compile(self.losses) if compiled else self.losses
        self.predict = torch.compile(self.logits) if compiled else self.logits

    @property
    def device(self) -> torch.device:
        return self.captioner.device

    def forward(self, batch: SceneBatch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The weighted sum, and (sum, count) of the plain loss for every part."""
        batch = self.filled(batch)
        losses_NC, misplaced_NC, entropy_NC = self.run(
            batch.features_BPF, batch.inputs_NC, batch.targets_NC, batch.places_NC, self.text(batch)
        )
        loss = (losses_NC * batch.weights_NC).sum()
        if self.on_policy is not None and entropy_NC is not None:
            own_N1 = (batch.fill_N != NOT_OWN)[:, None]
            unsure_NC = entropy_NC * batch.weights_NC * own_N1
            loss = loss + self.on_policy.entropy_weight * unsure_NC.sum()
        with torch.no_grad():
            parts = {
                f"loss_{name}": (losses_NC[chosen_NC].sum(), chosen_NC.sum())
                for name, chosen_NC in self.parts(batch).items()
            }
            if misplaced_NC is not None:
                again_NC = (batch.places_NC != NOWHERE) & (batch.slots_NC != NAME_SLOTS[0])
                parts["loss_place"] = (misplaced_NC[again_NC].sum(), again_NC.sum())
        if misplaced_NC is not None:
            loss = loss + (misplaced_NC * batch.place_weights_NC).sum()
        return loss, parts

    def parts(self, batch: SceneBatch) -> dict[str, Tensor]:
        """Which positions [N, C] each part of the loss in the log is the mean of."""
        counted_NC = (batch.weights_NC > 0) & (batch.slots_NC != END_SLOT)
        return {name: counted_NC & (batch.parts_NC == number) for number, name in enumerate(PARTS)}

    @torch.no_grad()
    def filled(self, batch: SceneBatch) -> SceneBatch:
        """The batch after the model has filled the share of their masks that canvases ask for."""
        chosen_N = (batch.fill_N > 0).nonzero()[:, 0]
        if self.on_policy is None or not len(chosen_N):
            return batch
        config = self.captioner.config
        each = len(batch.inputs_NC) // len(batch.features_BPF)
        before_KC, targets_KC = batch.inputs_NC[chosen_N], batch.targets_NC[chosen_N]
        logits_TV = self.predict(
            batch.features_BPF[chosen_N // each], before_KC, text=self.text(batch)
        ).float()
        logits_TV[:, [config.mask_token_id, *config.suppressed_token_ids]] = -torch.inf
        inputs_KC, filled_KC = fill_masks(
            before_KC,
            logits_TV.view(*before_KC.shape, -1),
            config.mask_token_id,
            batch.fill_N[chosen_N],
        )
        right_KC = inputs_KC == targets_KC
        factors_KC = fill_factors(right_KC, filled_KC, self.on_policy)
        parts_KC = torch.where(right_KC, CLEAN, REPLACED)
        return replace(
            batch,
            inputs_NC=batch.inputs_NC.index_copy(0, chosen_N, inputs_KC),
            weights_NC=batch.weights_NC.index_copy(
                0, chosen_N, batch.weights_NC[chosen_N] * factors_KC
            ),
            parts_NC=batch.parts_NC.index_copy(
                0, chosen_N, torch.where(filled_KC, parts_KC, batch.parts_NC[chosen_N])
            ),
        )

    def text(self, batch: SceneBatch) -> Text:
        """What the pictures of a batch are asked."""
        return batch.text or Text(self.before_Q, self.after_Q)

    def losses(
        self,
        features_BPF: Tensor,
        inputs_NC: Tensor,
        targets_NC: Tensor,
        places_NC: Tensor,
        text: Text,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Cross entropy of the words at every position, of the places if there is a head for them,
        and, if it counts, the entropy of masked positions that are predicted right, 0 elsewhere,
        [N, C]."""
        states: list[Tensor] | None = None if self.places is None else []
        logits_TV = self.logits(features_BPF, inputs_NC, states, text).float()
        words_T = cross_entropy(logits_TV, targets_NC.flatten(), reduction="none")
        entropy_NC = None
        if self.on_policy is not None and self.on_policy.entropy_weight:
            masked_NC = inputs_NC == self.captioner.config.mask_token_id
            right_NC = logits_TV.argmax(-1).view(targets_NC.shape) == targets_NC
            spread_T = entropy(logits_TV, self.on_policy.entropy_temperature)
            entropy_NC = spread_T.view(targets_NC.shape) * (masked_NC & right_NC)
        if self.places is None or states is None:
            return words_T.view(targets_NC.shape), None, entropy_NC
        middle_TD = states[len(states) // 2]
        found_TY = self.places(rms_norm(middle_TD, middle_TD.shape[-1:])).float()
        places_T = cross_entropy(
            found_TY, places_NC.flatten(), reduction="none", ignore_index=NOWHERE
        )
        return words_T.view(targets_NC.shape), places_T.view(targets_NC.shape), entropy_NC

    def logits(
        self,
        features_BPF: Tensor,
        inputs_NC: Tensor,
        states: list[Tensor] | None = None,
        text: Text | None = None,
    ) -> Tensor:
        """Logits of all canvas rows, [N x C, V]; `states` receives those rows after each layer."""
        if self.captioner.config.language.prefix_attention == "full":
            return self._logits_seen_by_prompt(features_BPF, inputs_NC, states, text)
        decoder = self.captioner.model
        pictures, canvases = len(features_BPF), len(inputs_NC)
        prompt_BQD = self.prompt(features_BPF, text)
        rows = prompt_BQD.shape[1]
        positions_Q = torch.arange(rows, device=features_BPF.device)
        attend = DenseAttend(pictures, record=True)
        decoder(prompt_BQD.flatten(0, 1), positions_Q.repeat(pictures), attend)
        repeat = canvases // pictures
        prefix = PrefixAttend(
            [key.repeat_interleave(repeat, 0) for key in attend.keys],
            [value.repeat_interleave(repeat, 0) for value in attend.values],
        )
        positions_C = rows + torch.arange(inputs_NC.shape[1], device=features_BPF.device)
        canvas_TD = decoder.embed_tokens(inputs_NC.flatten())
        hidden_TD = decoder(canvas_TD, positions_C.repeat(canvases), prefix, collect=states)
        return self.captioner.logits(hidden_TD)

    def _logits_seen_by_prompt(
        self,
        features_BPF: Tensor,
        inputs_NC: Tensor,
        states: list[Tensor] | None,
        text: Text | None,
    ) -> Tensor:
        """The same with full attention: every canvas has prompt rows of its own."""
        decoder = self.captioner.model
        canvases, columns = inputs_NC.shape
        prompt_BQD = self.prompt(features_BPF, text)
        prompt_NQD = prompt_BQD.repeat_interleave(canvases // len(features_BPF), 0)
        whole_NLD = torch.cat((prompt_NQD, decoder.embed_tokens(inputs_NC)), dim=1)
        positions_L = torch.arange(whole_NLD.shape[1], device=features_BPF.device)
        all_states: list[Tensor] | None = None if states is None else []
        hidden_TD = decoder(
            whole_NLD.flatten(0, 1),
            positions_L.repeat(canvases),
            DenseAttend(canvases),
            collect=all_states,
        )

        def canvas_rows(rows_TD: Tensor) -> Tensor:
            return rows_TD.view(*whole_NLD.shape[:2], -1)[:, -columns:].flatten(0, 1)

        if states is not None and all_states is not None:
            states += map(canvas_rows, all_states)
        return self.captioner.logits(canvas_rows(hidden_TD))

    def prompt(self, features_BPF: Tensor, text: Text | None = None) -> Tensor:
        """Prompt rows: text, projected cells and the newline, text, [B, Q, D]."""
        decoder = self.captioner.model
        pictures = len(features_BPF)
        image_BPD = self.captioner.project(features_BPF)
        newline_B1D = self.captioner.newline_D.expand(pictures, 1, -1)
        before_Q, after_Q = text or (self.before_Q, self.after_Q)
        before = decoder.embed_tokens(before_Q).expand(pictures, -1, -1)
        after = decoder.embed_tokens(after_Q).expand(pictures, -1, -1)
        return torch.cat((before, image_BPD, newline_B1D, after), dim=1)


@torch.inference_mode()
def slot_accuracy(objective: SceneObjective, batch: SceneBatch, mask_id: int) -> dict[str, float]:
    """Accuracy of content words, all masked, between visible template words, slot by slot.

    `slot_mean` is the mean over the slots; `shuffled_loss_gap` how much the loss rises when every
    picture gets its neighbour's features: zero means that the picture is not looked at.
    `alone_relation` is the accuracy of how stickers stand to each other when nothing else is
    masked. The number of masks tells the axis, so a model that does not know where the named
    stickers are has about .7 of these tokens, half of the words that matter.
    """
    batch = batch.to(objective.device)
    inputs_NC = torch.where(batch.slots_NC > 0, mask_id, batch.targets_NC)
    result = by_slot(objective, batch, inputs_NC)
    alone_NC = batch.slots_NC == RELATION_SLOTS[0]
    if alone_NC.any():
        alone_TV = objective.logits(
            batch.features_BPF, torch.where(alone_NC, mask_id, batch.targets_NC)
        )
        said_T = alone_TV.argmax(-1)[alone_NC.flatten()]
        result["alone_relation"] = (said_T == batch.targets_NC[alone_NC]).float().mean().item()
    return result


def by_slot(objective: SceneObjective, batch: SceneBatch, inputs_NC: Tensor) -> dict[str, float]:
    """Accuracy of content words given some inputs, slot by slot, with `slot_mean` over the slots
    and `shuffled_loss_gap`, how much their loss rises with the neighbour's picture."""
    logits_TV = objective.logits(batch.features_BPF, inputs_NC).float()
    right_NC = logits_TV.argmax(-1).view(inputs_NC.shape) == batch.targets_NC
    result = {}
    for number, name in enumerate(SLOTS, 1):
        chosen_NC = batch.slots_NC == number
        if chosen_NC.any():
            result[f"slot_{name}"] = right_NC[chosen_NC].float().mean().item()
    result["slot_mean"] = sum(result.values()) / len(result)
    chosen_T = (batch.slots_NC > 0).flatten()
    targets_T = batch.targets_NC.flatten()[chosen_T]
    shuffled_TV = objective.logits(batch.features_BPF.roll(1, 0), inputs_NC).float()
    own, other = (cross_entropy(rows[chosen_T], targets_T) for rows in (logits_TV, shuffled_TV))
    result["shuffled_loss_gap"] = (other - own).item()
    return result

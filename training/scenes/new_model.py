"""What a run on scenes works with: a new embedded model, or one to go on with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from rediff_model.chat_template import DEFAULT_QUESTION, TextCodec, conversation
from rediff_model.checkpoint import CheckpointError, load_weights, read_config, resolve
from rediff_model.config import LanguageConfig, ModelConfig, Preferences, VisionConfig
from rediff_model.model import CaptionModel
from rediff_model.vision.efficientnet import FEATURE_CHANNELS, STRIDE
from training.config import TrainConfigError
from training.loop.state import processes
from training.scenes.add_classifier import closer, widened
from training.scenes.canvases import CanvasBuilder
from training.scenes.objective import SceneObjective, Text
from training.stickers.atlas import Atlas
from training.stickers.grammar import compose
from training.stickers.prompts import draw_prompt
from training.stickers.sample import sample_scene
from training.stickers.tokenizer import (
    BOS,
    END_HEADER,
    END_OF_TEXT,
    END_OF_TURN,
    MASK,
    SPECIAL_TOKENS,
    START_HEADER,
    train_tokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from training.config import SceneTraining
    from training.loss.on_policy import OnPolicy

VOCABULARY = 820
"""Tokens: small enough that most names take several, large enough for the canvas."""
TOWER_PREFIX = "model.vision_tower."
PROJECTOR_PREFIX = "model.mm_projector."
DOMAIN = (
    "Scenes of two to five stickers, of 120 kinds, on coloured plates. Photographs, text and faces"
    " were not in its training: it describes them as stickers."
)


@dataclass(frozen=True, slots=True)
class SceneRun:
    """What a run on scenes works with."""

    config: SceneTraining
    folder: Path
    atlas: Atlas
    tokenizer: Tokenizer
    model: CaptionModel
    model_config: ModelConfig
    objective: SceneObjective
    canvases: CanvasBuilder
    codec: TextCodec

    def drawn_text(self, rng: np.random.Generator) -> Text | None:
        """What the pictures of one step are asked; None is the default prompt."""
        if not self.config.other_prompts or rng.random() >= self.config.other_prompts:
            return None
        return Text.of(self.codec, draw_prompt(rng))


def prepare(config: SceneTraining, folder: Path, on_policy: OnPolicy | None = None) -> SceneRun:
    """Atlas, tokenizer, and a model: new, or from `start_from`."""
    torch.manual_seed(config.seed)
    atlas = Atlas.load()
    if config.start_from is None:
        texts = caption_texts(atlas)
        tokenizer = train_tokenizer(texts, atlas.names, VOCABULARY)
        _check_canvas(config.model.canvas_length, texts, tokenizer)
        model_config = embedded_config(config, tokenizer)
        model = CaptionModel(model_config)
        initialise(model)
        assert config.tower is not None
        _fill(cast("nn.Module", model.tower), config.tower, tower_weights)
        if config.projector is not None:
            projector = cast("nn.Module", model.model.mm_projector)
            _fill(projector, config.projector, projector_weights)
    else:
        origin = _folder("start_from", config.start_from)
        model_config = read_config(origin)
        if model_config.vision.tower != "efficientnet_lite0":
            raise TrainConfigError(
                f"start_from {config.start_from} has the tower {model_config.vision.tower}; "
                "scenes are for efficientnet_lite0"
            )
        if config.prefix_attention is not None:
            language = replace(model_config.language, prefix_attention=config.prefix_attention)
            model_config = replace(model_config, language=language)
        tokenizer = Tokenizer.from_file(str(origin / "tokenizer.json"))
        model = CaptionModel(model_config)
        load_weights(model, origin, "cpu", torch.float32)
        if config.sight is not None:
            vision = closer(model_config.vision, config.sight.image_size, atlas.names)
            model_config = replace(model_config, vision=vision)
            model = widened(model, model_config, atlas.names)
    preferred = {name: getattr(config, name) for name in Preferences.__dataclass_fields__}
    preferences = replace(
        model_config.preferences,
        **{name: value for name, value in preferred.items() if value is not None},
    )
    taught = () if config.other_prompts else model_config.taught_prompts
    model_config = replace(
        model_config, preferences=preferences, taught_prompts=taught, single_question=True
    )
    cast("nn.Module", model.tower).requires_grad_(False)
    model.to(processes().device)
    codec = TextCodec(tokenizer)
    before, after = codec.encode_prompt(conversation([DEFAULT_QUESTION]))
    objective = SceneObjective(
        model,
        before,
        after,
        compiled=config.compiled,
        places=any(phase.place_weight > 0 for phase in config.phases),
        on_policy=on_policy,
    )
    canvases = CanvasBuilder(
        tokenizer,
        atlas.names,
        length=model_config.canvas_length,
        mask_id=model_config.mask_token_id,
        stop_id=model_config.stop_token_id,
        special_ids=len(SPECIAL_TOKENS),
    )
    return SceneRun(
        config, folder, atlas, tokenizer, model, model_config, objective, canvases, codec
    )


def _fill(
    module: nn.Module, path: Path, read: Callable[[Path], Mapping[str, torch.Tensor]]
) -> None:
    """Load what `read` finds at `path`; raises TrainConfigError if that is something else."""
    try:
        module.load_state_dict(read(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise TrainConfigError(f"{path} holds no weights that fit: {reason:.200}") from None


def _folder(key: str, path: Path) -> Path:
    """The checkpoint that `key` of a configuration names; raises TrainConfigError for none."""
    try:
        return resolve(path)
    except CheckpointError as error:
        raise TrainConfigError(f"{key}: {error}") from None


def tower_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tower's tensors from a file of their own, or out of a checkpoint."""
    if path.is_file() or path.suffix == ".safetensors":
        return load_file(path)
    return part_of(_folder("tower", path), TOWER_PREFIX)


def projector_weights(path: Path) -> dict[str, torch.Tensor]:
    """The projector's tensors out of a checkpoint."""
    return part_of(_folder("projector", path), PROJECTOR_PREFIX)


def part_of(checkpoint: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint folder whose names begin with `prefix`, without it."""
    whole = load_file(checkpoint / "model.safetensors")
    return {
        name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)
    }


def caption_texts(atlas: Atlas, captions: int = 4000) -> list[str]:
    """Captions of training scenes, of which the tokenizer is made."""
    rng = np.random.default_rng(0)
    return [compose(sample_scene(seed, atlas), rng).text for seed in range(captions)]


def _check_canvas(length: int, texts: Sequence[str], tokenizer: Tokenizer) -> None:
    """Raises TrainConfigError for a canvas without room for the longest caption and its end."""
    least = 1 + max(len(tokenizer.encode(text).ids) for text in texts)
    if length < least:
        raise TrainConfigError(
            f"model.canvas_length {length} cuts captions off: the longest takes {least} tokens "
            "with its end"
        )


def embedded_config(config: SceneTraining, tokenizer: Tokenizer) -> ModelConfig:
    """The configuration of a new embedded model: one square tile through EfficientNet-Lite0."""
    shape = config.model
    ids = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    return ModelConfig(
        language=LanguageConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            qk_norm=shape.qk_norm,
            prefix_attention=shape.prefix_attention,
        ),
        vision=VisionConfig(
            tower="efficientnet_lite0",
            image_size=384,
            patch_size=STRIDE,
            hidden_size=FEATURE_CHANNELS,
        ),
        aspect="square",
        mask_token_id=ids[MASK],
        suppressed_token_ids=tuple(
            ids[name] for name in (END_OF_TEXT, BOS, START_HEADER, END_HEADER)
        ),
        stop_token_id=ids[END_OF_TURN],
        canvas_length=shape.canvas_length,
        taught_prompts=(DEFAULT_QUESTION,),
        single_question=True,
        domain=DOMAIN,
    )


def initialise(model: CaptionModel) -> None:
    """Unit embeddings, zero output matrices, the rest scaled by fan-in.

    With zero outputs every layer begins as the identity, which matters more than anything else
    for how soon a small model looks at the picture.
    """
    for name, value in model.named_parameters():
        if "vision_tower" in name or "norm" in name:
            continue
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight", "bias")):
            nn.init.zeros_(value)
        elif "embed_tokens" in name or "image_newline" in name:
            nn.init.normal_(value)
        else:
            nn.init.normal_(value, std=value.shape[-1] ** -0.5)

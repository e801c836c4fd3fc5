"""The twin as users run it: transformers' Qwen3 behind our projector, and its checkpoint folder.

Qwen3 is the class that computes what our decoder does: RMSNorm, norms of queries and keys per
head, rotary positions in two halves, SwiGLU. The folder is what `from_pretrained` reads, with
`projector.safetensors` beside it.

Shape suffixes: P rows of a prompt, F size of a tower's features, D hidden size, B prompts,
C new tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from rediff_model.chat_template import DEFAULT_QUESTION, TextCodec, conversation
from rediff_model.files.atomic import replacing_folder
from rediff_model.vision.siglip import build_projector
from training.stickers.tokenizer import save as save_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer
    from torch import Tensor

    from rediff_model.model import CaptionModel

PROJECTOR = "projector.safetensors"
TRAINING = "training.json"
OURS = ("model.vision_tower.", "model.mm_projector.", "model.image_newline")
"""Tensors of our model that the language model of the twin lacks."""
POSITIONS = 512
"""More than prompt and caption together take."""


@dataclass(frozen=True, slots=True)
class Twin:
    """A loaded twin: features of a picture in, ids and text out."""

    language: Any
    """Qwen3ForCausalLM: its `generate` is not typed so that a checker admits a call."""
    projector: nn.Module
    newline_D: Tensor
    codec: TextCodec

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a checkpoint folder, in float32.

        Raises:
            FileNotFoundError: it holds no projector.
            OSError: transformers cannot read its language model.
            TokenizerError: tokenizer.json cannot be used.
        """
        if not (folder / PROJECTOR).is_file():
            raise FileNotFoundError(f"{folder} holds no {PROJECTOR}: it is no twin's checkpoint")
        tensors = load_file(folder / PROJECTOR)
        hidden, features = tensors["mm_projector.0.weight"].shape
        projector = build_projector(features, hidden)
        newline_D = tensors.pop("image_newline")
        projector.load_state_dict(
            {name.removeprefix("mm_projector."): value for name, value in tensors.items()}
        )
        language: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
        codec = TextCodec.load(folder / "tokenizer.json")
        return cls(language.eval(), projector.eval(), newline_D, codec)

    @torch.inference_mode()
    def prompt(self, features_PF: Tensor) -> Tensor:
        """Rows of the default prompt around a picture of one tile, [P, D]."""
        before, after = self.codec.encode_prompt(conversation([DEFAULT_QUESTION]))
        embed = self.language.get_input_embeddings()
        return torch.cat(
            (
                embed(torch.tensor(before)),
                self.projector(features_PF),
                self.newline_D[None],
                embed(torch.tensor(after)),
            )
        )

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Tensor], max_new_tokens: int = 128, *, use_cache: bool = True
    ) -> list[list[int]]:
        """Greedy captions of equally long prompts [P, D] in one batch: ids before the stop."""
        rows_BPD = torch.stack(list(prompts))
        made_BC = self.language.generate(
            inputs_embeds=rows_BPD,
            attention_mask=torch.ones(rows_BPD.shape[:2], dtype=torch.long),
            max_new_tokens=max_new_tokens,
            use_cache=use_cache,
        )
        stop = self.language.generation_config.eos_token_id
        rows: list[list[int]] = made_BC.tolist()
        return [row[: row.index(stop)] if stop in row else row for row in rows]


def save(model: CaptionModel, tokenizer: Tokenizer, training: Mapping[str, int], out: Path) -> None:
    """Write the checkpoint folder of a trained model at once; the frozen tower is left out.

    `training` says what it has been trained on, and is kept beside it as training.json.
    """
    stop = model.config.stop_token_id
    with torch.device("meta"):
        language = Qwen3ForCausalLM(language_config(model))
    state = model.state_dict()
    own = {name: value for name, value in state.items() if not name.startswith(OURS)}
    language.load_state_dict(own, assign=True)
    language.generation_config = GenerationConfig.from_dict(
        {"do_sample": False, "eos_token_id": stop, "pad_token_id": stop}
    )
    projector = {
        name.removeprefix("model."): value.contiguous()
        for name, value in state.items()
        if name.startswith(OURS[1:])
    }
    with replacing_folder(out) as fresh:
        save_tokenizer(tokenizer, fresh)
        language.save_pretrained(fresh)
        save_file(projector, fresh / PROJECTOR, metadata={"format": "pt"})
        text = json.dumps(dict(training), indent=2) + "\n"
        (fresh / TRAINING).write_text(text, encoding="utf-8")


def language_config(model: CaptionModel) -> Qwen3Config:
    """The configuration under which Qwen3 computes what our decoder does with causal attention."""
    shape = model.config.language
    assert shape.qk_norm, "Qwen3 always has norms of queries and keys"
    return Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.rms_norm_eps,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        attention_bias=shape.attention_bias,
        tie_word_embeddings=shape.tie_word_embeddings,
        eos_token_id=model.config.stop_token_id,
        pad_token_id=model.config.stop_token_id,
        dtype="float32",
    )

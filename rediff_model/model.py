"""The whole captioner: tower, projector and language model, and its tokenizer beside it.

Shape suffixes: N tiles, T side of a tile in pixels, P patches of a tile (of a prompt: its rows),
F size of a tower's features, D hidden size, L tokens of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rediff_model import checkpoint
from rediff_model.chat_template import (
    DEFAULT_QUESTION,
    TextCodec,
    TokenizerError,
    asked,
    conversation,
)
from rediff_model.config import TokenIds
from rediff_model.language import LanguageModel
from rediff_model.vision.siglip import build_projector, build_tower
from rediff_model.vision.tiling import Layout, cut_tiles, layout, merge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import Self

    from PIL import Image

    from rediff_model.chat_template import Question
    from rediff_model.config import ModelConfig
    from rediff_model.sampling.params import Compat
    from rediff_model.vision.siglip import VisionTower

TILES_AT_ONCE = 16
"""Tiles go through the tower in batches of this many."""


class CaptionModel(LanguageModel):
    """The language model with a vision tower in front; tensor names are the published ones.

    Weights are random until loaded.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.language)
        self.config = config
        hidden = config.language.hidden_size
        self.model.vision_tower = build_tower(config.vision)
        self.model.mm_projector = build_projector(config.vision.hidden_size, hidden)
        self.model.image_newline = nn.Parameter(torch.empty(hidden))
        nn.init.normal_(self.newline_D, std=1 / sqrt(hidden))

    @property
    def tower(self) -> VisionTower:
        return cast("VisionTower", self.model.vision_tower)

    @property
    def newline_D(self) -> Tensor:
        """What ends a row of a picture's patches."""
        return cast("Tensor", self.model.image_newline)

    @property
    def device(self) -> torch.device:
        return self.newline_D.device

    def project(self, features_NPF: Tensor) -> Tensor:
        """Features of the tower to rows of the language model, [N, P, D]."""
        rows_NPD: Tensor = cast("nn.Module", self.model.mm_projector)(features_NPF)
        return rows_NPD

    def encode_tiles(self, tiles_N3TT: Tensor) -> Tensor:
        """uint8 tiles, on any device, to rows of the language model, [N, P, D]."""
        tower = self.tower
        chunks = [
            self.project(tower(tower.normalise(chunk.to(self.device))))
            for chunk in torch.split(tiles_N3TT, TILES_AT_ONCE)
        ]
        return torch.cat(chunks)

    def encode_images(self, tiles: Sequence[Tensor], plans: Sequence[Layout]) -> list[Tensor]:
        """The sequence of each picture, [L, D], from its uint8 tiles, [N, 3, T, T]."""
        if not tiles:
            return []
        rows_NPD = self.encode_tiles(torch.cat(list(tiles)))
        return [
            merge(part, plan, self.newline_D)
            for part, plan in zip(
                torch.split(rows_NPD, [len(t) for t in tiles]), plans, strict=True
            )
        ]

    def embed_prompt(
        self, before: Sequence[int], features_LD: Tensor | None, after: Sequence[int]
    ) -> Tensor:
        """Rows of a prompt, [P, D]: ids, a picture, ids."""
        ids = torch.tensor([*before, *after], device=self.device)
        rows_PD: Tensor = self.model.embed_tokens(ids)
        if features_LD is None:
            return rows_PD
        return torch.cat((rows_PD[: len(before)], features_LD, rows_PD[len(before) :]))


class _NoDraws(TorchFunctionMode):
    """Leaves out `nn.init.normal_`, which imports torch's compiler (seconds) on the meta device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        named = kwargs or {}
        if func is nn.init.normal_:
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


@dataclass(frozen=True, slots=True)
class Captioner:
    """A loaded checkpoint: pictures and questions in, prompt rows out, ids to text."""

    config: ModelConfig
    model: CaptionModel
    codec: TextCodec

    @classmethod
    def load(
        cls,
        path_or_hub_id: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load a checkpoint directory, or one of the Hugging Face hub.

        Raises:
            ConfigError: config.json cannot be used.
            CheckpointError: a file or tensor is missing, extra or of another shape.
            TokenizerError: tokenizer.json cannot be used.
        """
        folder = checkpoint.resolve(path_or_hub_id, revision=revision)
        config = checkpoint.read_config(folder)
        codec = TextCodec.load(folder / "tokenizer.json")
        if codec.vocabulary_size > config.language.vocab_size:
            raise TokenizerError(
                f"{folder / 'tokenizer.json'} has {codec.vocabulary_size} tokens, the model "
                f"{config.language.vocab_size}"
            )
        with torch.device("meta"), _NoDraws():
            model = CaptionModel(config)
        checkpoint.load_weights(model, folder, device=device, dtype=dtype)
        # The tables that no checkpoint holds are still on the CPU.
        return cls(config, model.to(device).eval(), codec)

    @property
    def token_ids(self) -> TokenIds:
        return TokenIds.from_config(self.config, self.codec.spaced)

    @torch.inference_mode()
    def image_features(
        self, images: Sequence[Image.Image], compat: Compat = "default"
    ) -> list[Tensor]:
        """The sequence of each picture, [L, D], newline rows included."""
        tiles = [cut_tiles(image, self.config, compat) for image in images]
        return self.model.encode_images(tiles, [layout(i.size, self.config) for i in images])

    @torch.inference_mode()
    def prompt(
        self,
        features_LD: Tensor | None,
        question: Question = DEFAULT_QUESTION,
        compat: Compat = "default",
    ) -> Tensor:
        """Rows of the prompt, [P, D]: a question about a picture or a conversation with one; a bare
        question without features."""
        if features_LD is None and isinstance(question, str):
            prompt = conversation([question], image=False)
        else:
            prompt = conversation(asked(question))
        before, after = self.codec.encode_prompt(prompt, compat)
        return self.model.embed_prompt(before, features_LD, after)

    def encode(self, text: str) -> list[int]:
        """Ids of text; special tokens spelt out in it are ordinary text."""
        return self.codec.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self.codec.decode(ids)

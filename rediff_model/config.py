"""The configuration of a captioner, read from and written to `config.json`.

The keys are those of published LLaDA-V / ReDiff checkpoints (a flat Llama-like dictionary with
`mm_*` keys); what those leave to code, such as the mask token, has keys of ours with the
published values as defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

T = TypeVar("T")
PrefixAttention = Literal["full", "prefix"]
Tower = Literal["siglip", "efficientnet_lite0"]
Aspect = Literal["square", "anyres_max"]
Preset = Literal["rediff", "mask", "adaptive", "careful"]
"""Names of sampler settings, see `rediff_model.sampling.params.PRESETS`."""


MOST_LAYERS = 1000
"""A model of more layers would be built for hours before its checkpoint is found not to fit."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and the value."""


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """Shape of the language model. Defaults are LLaDA 8B.

    Raises:
        ConfigError: a size is no positive number, above what anybody has built, or does not
            divide another one that it must.
    """

    vocab_size: int = 126464
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    qk_norm: bool = False
    """RMS-normalise queries and keys per head; not in the official architecture."""
    prefix_attention: PrefixAttention = "full"
    """`prefix`: prompt rows attend to the prompt only, so that their cache is exact."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if self.num_hidden_layers > MOST_LAYERS:
            raise ConfigError(
                f"num_hidden_layers must be at most {MOST_LAYERS}, got {self.num_hidden_layers}"
            )
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} does not divide "
                f"hidden_size {self.hidden_size}"
            )
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.prefix_attention not in get_args(PrefixAttention):
            raise ConfigError(
                f"prefix_attention must be full or prefix, got {self.prefix_attention!r}"
            )


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Shape of the vision tower. Defaults are SigLIP2 so400m patch14 384."""

    tower: Tower = "siglip"
    image_size: int = 384
    """Side of a tile in pixels."""
    patch_size: int = 14
    """Pixels a patch; for a convolutional tower its stride."""
    hidden_size: int = 1152
    """Size of a feature vector."""
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    """Layers in the checkpoint as published; SigLIP features leave out the last one."""
    num_attention_heads: int = 16
    layer_norm_eps: float = 1e-6
    class_rows: tuple[int, ...] = ()
    """For `efficientnet_lite0`: of every class whose probability is part of a feature, how many
    rows of the tower's classifier speak for it."""

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    def __post_init__(self) -> None:
        if self.tower not in get_args(Tower):
            raise ConfigError(f"vision tower must be one of {get_args(Tower)}, got {self.tower!r}")
        if self.image_size < self.patch_size or self.patch_size < 1:
            raise ConfigError(f"image_size {self.image_size} is below patch_size {self.patch_size}")
        if self.class_rows and (self.tower == "siglip" or min(self.class_rows) < 1):
            raise ConfigError(
                f"class_rows are numbers from 1 and for efficientnet_lite0, got "
                f"{list(self.class_rows)} for {self.tower}"
            )


@dataclass(frozen=True, slots=True)
class Preferences:
    """How a checkpoint is best decoded, where a request leaves it open."""

    block_lengths: tuple[int, ...] = ()
    """Length of a block at 1, 2, … tokens a step; beyond the last, the whole canvas."""
    extra_refine_steps: int = 0
    """Of a canvas in one block."""
    preset: str = "rediff"
    """One of `Preset`."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole captioner: language model, tower, tiling and the ids that sampling needs."""

    language: LanguageConfig = field(default_factory=LanguageConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    aspect: Aspect = "anyres_max"
    """`square`: the picture as one tile; `anyres_max`: the base tile and a grid of tiles."""
    anyres_max: int = 4
    """The tile map is shrunk when it holds more than this many tiles' tokens."""
    grid_side: int = 6
    """Candidate grids are i x j tiles, i and j from 1 to this."""
    mask_token_id: int = 126336
    suppressed_token_ids: tuple[int, ...] = (126081, 126080, 126346, 126347)
    """Never sampled: end and start of text, start and end of header."""
    stop_token_id: int = 126348
    canvas_length: int = 128
    """Tokens of a caption by default."""
    preferences: Preferences = field(default_factory=Preferences)
    """Decoding by default; `preset`, `block_lengths` and `extra_refine_steps` in the file."""
    taught_prompts: tuple[str, ...] = ()
    """The only questions that the checkpoint was trained on; empty: it takes any text."""
    single_question: bool = False
    """The checkpoint was trained on single questions, not on conversations of several turns."""
    domain: str = ""
    """Which pictures it was trained for and which it was not, in words for users; may be empty."""

    def __post_init__(self) -> None:
        for name, ids in (
            ("mask_token_id", (self.mask_token_id,)),
            ("stop_token_id", (self.stop_token_id,)),
            ("suppressed_token_ids", self.suppressed_token_ids),
        ):
            for token in ids:
                if not 0 <= token < self.language.vocab_size:
                    raise ConfigError(
                        f"{name} {token} lies outside the vocabulary of {self.language.vocab_size}"
                    )
        if self.canvas_length < 1:
            raise ConfigError(f"canvas_length must be positive, got {self.canvas_length}")
        for length in self.preferences.block_lengths:
            if length < 1 or self.canvas_length % length:
                raise ConfigError(
                    f"block_lengths must divide canvas_length {self.canvas_length}, got {length}"
                )
        extra = self.preferences.extra_refine_steps
        if not 0 <= extra <= self.canvas_length:
            raise ConfigError(
                f"extra_refine_steps must be 0 to canvas_length {self.canvas_length}, got {extra}"
            )
        if (preset := self.preferences.preset) not in get_args(Preset):
            raise ConfigError(f"preset must be one of {get_args(Preset)}, got {preset!r}")
        if not all(prompt.strip() for prompt in self.taught_prompts):
            raise ConfigError("taught_prompts must not hold a blank text")

    @classmethod
    def from_json(cls, source: Path | Mapping[str, Any]) -> Self:
        """Read a `config.json`, as a path or parsed.

        Raises:
            ConfigError: not JSON, a missing key, or a value of the wrong type or range.
        """
        if isinstance(source, Path):
            try:
                values = json.loads(source.read_text(encoding="utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise ConfigError(f"{source} is not valid JSON: {error}") from None
        else:
            values = source
        try:
            return cls(**_parse(values))
        except ConfigError as error:
            if isinstance(source, Path):
                raise ConfigError(f"{source}: {error}") from None
            raise

    def to_json(self) -> dict[str, Any]:
        """The dictionary that `from_json` reads, with the published key names."""
        values = asdict(self)
        language, vision = values.pop("language"), values.pop("vision")
        aspect, limit = values.pop("aspect"), values.pop("anyres_max")
        preferences = values.pop("preferences")
        return {
            "architectures": ["LlavaLLaDAModelLM"],
            "model_type": "llava_llada",
            **language,
            "hidden_act": "silu",
            "mm_hidden_size": vision["hidden_size"],
            "mm_projector_type": "mlp2x_gelu",
            "mm_patch_merge_type": "spatial_unpad",
            "image_aspect_ratio": f"anyres_max_{limit}" if aspect == "anyres_max" else "square",
            "vision_config": {**vision, "class_rows": list(self.vision.class_rows)},
            **values,
            "suppressed_token_ids": list(self.suppressed_token_ids),
            **preferences,
            "block_lengths": list(self.preferences.block_lengths),
            "taught_prompts": list(self.taught_prompts),
        }


@dataclass(frozen=True, slots=True)
class TokenIds:
    """The token ids that the sampler treats apart."""

    mask: int
    suppressed: tuple[int, ...]
    """Never sampled."""
    stop: int
    """Ends a caption unless the settings name other stops."""
    spaced: tuple[int, ...] = ()
    """Tokens that begin with a space: what a template's hole behind a space may begin with."""

    @classmethod
    def from_config(cls, config: ModelConfig, spaced: tuple[int, ...] = ()) -> Self:
        return cls(config.mask_token_id, config.suppressed_token_ids, config.stop_token_id, spaced)


_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_IDS = ("mask_token_id", "suppressed_token_ids", "stop_token_id")
"""Known for the vocabulary of LLaDA, to be told for any other."""
MODEL_TYPES = ("llava_llada", "llada")
_FIXED = {
    "hidden_act": "silu",
    "mm_projector_type": "mlp2x_gelu",
    "mm_patch_merge_type": "spatial_unpad",
    "rope_scaling": None,
}
"""Keys whose other values this implementation does not compute."""


def _parse(values: object) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"the configuration must be an object, got {type(values).__name__}")
    for key in _REQUIRED:
        if values.get(key) is None:
            raise ConfigError(f"config.json lacks the key {key}")
    if values["vocab_size"] != LanguageConfig().vocab_size:
        for key in _IDS:
            if values.get(key) is None:
                raise ConfigError(f"config.json lacks the key {key}")
    if values.get("model_type", MODEL_TYPES[0]) not in MODEL_TYPES:
        raise ConfigError(f"model_type must be one of {MODEL_TYPES}, got {values['model_type']!r}")
    for key, expected in _FIXED.items():
        if values.get(key, expected) != expected:
            raise ConfigError(f"{key} must be {expected!r}, got {values[key]!r}")
    language = _build(
        LanguageConfig, {"num_key_value_heads": values["num_attention_heads"], **values}
    )
    vision_values = values.get("vision_config", {})
    if not isinstance(vision_values, Mapping):
        raise ConfigError(f"vision_config must be an object, got {vision_values!r}")
    nested = ("language", "vision", "preferences")
    top = {key: value for key, value in values.items() if key not in nested}
    aspect = str(values.get("image_aspect_ratio", "anyres_max_4"))
    if aspect.startswith("anyres_max_") and aspect.removeprefix("anyres_max_").isdigit():
        top |= {"aspect": "anyres_max", "anyres_max": int(aspect.removeprefix("anyres_max_"))}
    elif aspect == "square":
        top |= {"aspect": "square"}
    else:
        raise ConfigError(f"image_aspect_ratio must be anyres_max_N or square, got {aspect!r}")
    whole = _build(
        ModelConfig,
        top,
        language=language,
        vision=_build(VisionConfig, vision_values),
        preferences=_build(Preferences, values),
    )
    return {name: getattr(whole, name) for name in ModelConfig.__dataclass_fields__}


def _build(kind: type[T], values: Mapping[str, Any], **parts: object) -> T:
    """Build a dataclass from the keys it knows, checking each value against its default's type."""
    known: dict[str, Any] = dict(parts)
    reference = kind()
    for name, described in kind.__dataclass_fields__.items():  # type: ignore[attr-defined]
        if name in parts or values.get(name) is None:
            continue
        value, default = values[name], getattr(reference, name)
        if isinstance(default, tuple) and isinstance(value, list | tuple):
            value = tuple(value)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise ConfigError(f"{name} must be {type(default).__name__}, got {values[name]!r}")
        item_type, items = (str, "texts") if "str" in described.type else (int, "integers")
        if isinstance(value, tuple) and not all(type(item) is item_type for item in value):
            raise ConfigError(f"{name} must hold {items}, got {values[name]!r}")
        known[name] = value
    return kind(**known)

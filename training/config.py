"""The configuration of a training run: one YAML file or options, checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from rediff_model.checkpoint import SHIPPED
from rediff_model.config import Preset
from training import plain_yaml
from training.loss.official import Defect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class TrainConfigError(ValueError):
    """A configuration that cannot be used; one line a wrong value."""


class Strict(BaseModel):
    """Unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def changes(self, name: str) -> bool:
        """Whether a value is not its default; a dump sets all, so `model_fields_set` cannot say."""
        default = type(self).model_fields[name].get_default(call_default_factory=True)
        return bool(getattr(self, name) != default)


def _by_name(path: Path) -> Path:
    """A checkpoint of the package by its name, so that a run's note is the same wherever both lie.

    Not where the name is that of another folder, which would be taken for it.
    """
    named = Path(path.name)
    shipped = path.is_dir() and path.parent.resolve() == SHIPPED.resolve()
    return named if shipped and not named.exists() else path


Checkpoint = Annotated[Path, AfterValidator(_by_name)]
"""What `rediff_model.checkpoint.resolve` finds: a folder, or a name such as embedded-384."""


class Training(Strict):
    """What runs of every kind have in common."""

    seed: int = Field(0, ge=0)
    precision: Annotated[
        Literal["no", "bf16"], BeforeValidator(lambda given: "no" if given is False else given)
    ] = "bf16"
    """Of the products; an unquoted `no` is false to YAML, and is meant."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of a step's gradient."""
    threads: int = Field(0, ge=0)
    """Of torch on the CPU; 0 leaves its own choice."""
    evaluate_every: int = Field(1000, gt=0)
    save_every: int = Field(500, gt=0)

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file and apply `key.sub=value` overrides.

        Raises:
            TrainConfigError: the file is missing, not YAML, or has a wrong or unknown key.
        """
        return cls.parse(read_values(path, overrides), path)

    @classmethod
    def parse(cls, values: Mapping[str, Any], path: Path) -> Self:
        """Check what was read from `path`.

        Raises:
            TrainConfigError: a wrong or unknown key; one line each.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise TrainConfigError("\n".join(_faults(error, path))) from None


def _faults(error: ValidationError, path: Path) -> Iterator[str]:
    """A line each; of a list whose items are wrong, the items alone."""
    items = error.errors(include_url=False)
    places = [item["loc"] for item in items]
    for item, place in zip(items, places, strict=True):
        if any(len(other) > len(place) and other[: len(place)] == place for other in places):
            continue
        where = ".".join(map(str, place))
        # Values that do not go together name themselves.
        named = item["type"] == "value_error"
        message = item["msg"].removeprefix("Value error, ")
        message = message if named else f"{message}, got {item['input']!r}"
        yield f"{path}: {where}: {message}" if where else f"{path}: {message}"


class ModelShape(Strict):
    """The language model of an embedded checkpoint."""

    hidden_size: int = Field(192, gt=0)
    intermediate_size: int = Field(512, gt=0)
    layers: int = Field(5, gt=0)
    heads: int = Field(6, gt=0)
    qk_norm: bool = True
    canvas_length: int = Field(128, gt=0)
    prefix_attention: Literal["prefix", "full"] = "prefix"

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"{self.heads} heads of an even size do not make a hidden_size of "
                f"{self.hidden_size}"
            )
        return self


class DataShape(Strict):
    """Scenes to train on."""

    # Not dumped: runs that noted their configuration before there was a choice go on.
    kind: Literal["scenes"] = Field("scenes", exclude=True)
    scenes: int = Field(24000, gt=0)
    """Different pictures; each is captioned anew every time it comes up."""
    validation_scenes: int = Field(256, gt=0)
    first_seed: int = Field(0, ge=0)


class Phase(Strict):
    """Some steps with one mix of canvases; fields as in `training.scenes.canvases.Mix`."""

    steps: int = Field(gt=0)
    slot_masked: float = Field(0.5, ge=0, le=1)
    cut: float = Field(0.0, ge=0, le=1)
    opening: float = Field(0.0, ge=0, le=1)
    replace: float = Field(0.0, ge=0, le=1)
    pair: float = Field(0.0, ge=0, le=1)
    drill: float = Field(0.0, ge=0, le=1)
    counts: float = Field(0.0, ge=0, le=1)
    replace_low: float = Field(0.03, ge=0, le=1)
    replace_high: float = Field(0.12, ge=0, le=1)
    content_weight: float = Field(1.0, gt=0)
    relation_weight: float = Field(1.0, gt=0)
    end_weight: float = Field(0.3, ge=0)
    clean_weight: float = Field(0.0, ge=0)
    replaced_weight: float = Field(1.0, ge=0)
    place_weight: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.replace_low > self.replace_high:
            raise ValueError(
                f"replace_low {self.replace_low} is above replace_high {self.replace_high}"
            )
        if self.replace + self.pair > 1:
            raise ValueError(f"replace {self.replace} and pair {self.pair} exceed 1 together")
        if self.opening and not self.cut:
            raise ValueError(f"opening {self.opening} is a share of the cut canvases, and cut is 0")
        return self


class Optimiser(Strict):
    """Muon for the matrices of the layers, AdamW for everything else."""

    muon: float = Field(0.02, gt=0)
    adamw: float = Field(3e-3, gt=0)
    projector: float = Field(3e-4, gt=0)
    """AdamW on the projector: at the rate of the embeddings it forgets its alignment, its output
    grows a hundredfold, and names are not learnt."""
    weight_decay: float = Field(0.01, ge=0)


class SightShape(Strict):
    """A tower that looks closer and tells classes."""

    image_size: int = Field(576, gt=0)
    """Side of the picture that the tower is given, in pixels."""
    steps: int = Field(1200, gt=0)


class SceneTraining(Training):
    """Stage I of an embedded model on sticker scenes."""

    model: ModelShape = ModelShape()
    data: DataShape = DataShape()
    tower: Checkpoint | None = None
    """The frozen tower that a new model needs: a checkpoint's, or a file of
    scripts/convert_efficientnet.py. Not used with `start_from`, whose model has its own."""
    projector: Checkpoint | None = None
    """Whose projector a new model begins with; None is a new one."""
    start_from: Checkpoint | None = None
    """Whose weights to begin with."""
    pictures: int = Field(8, gt=0)
    """Pictures a step."""
    wordings: int = Field(2, gt=1)
    """Canvases a picture, with different captions."""
    other_prompts: float = Field(0.0, ge=0, le=1)
    """Share of the steps that ask in other words than the default prompt, see
    `training.stickers.prompts`; above 0 the checkpoint no longer lists the prompts it was
    taught."""
    parts: int = Field(1, gt=0)
    """Batches of `pictures` that make up a step, over all processes."""
    align_steps: int = Field(800, ge=0)
    """Steps of the projector alone on dense labels of the cells."""
    tower_steps: int = Field(0, ge=0)
    """Steps of the tower's late stages and the projector on these labels, before the captions; 0
    leaves the tower as it is."""
    sight: SightShape | None = None
    """Let the tower look at a larger picture and tell classes, before the captions, see
    `training.scenes.finetune_tower`; None leaves it as it is."""
    phases: tuple[Phase, ...]
    """Of captions; may be empty where only what is seen is taught."""
    optimiser: Optimiser = Optimiser()
    schedule: Literal["cosine", "linear_tail"] = "linear_tail"
    tail: float = Field(0.4, gt=0, le=1)
    warmup: int = Field(40, ge=1)
    ema: float = Field(0.997, ge=0, lt=1)
    compiled: bool = False
    loss: Literal["scenes", "default", "official"] = "scenes"
    """`scenes` masks and weighs content words apart (`training.scenes.canvases`); the others are
    the losses of `training.loss.masked_diffusion` for any captions, mended and official."""
    defects: tuple[Defect, ...] = ()
    """Of the official losses and samples, what the loss `default` repeats, see
    `training.loss.official`."""
    prefix_attention: Literal["prefix", "full"] | None = None
    """Train a model from `start_from` with this instead of its own; None keeps it."""
    block_lengths: tuple[int, ...] | None = None
    extra_refine_steps: int | None = Field(None, ge=0)
    preset: Preset | None = None
    """What the checkpoint will prefer, see `ModelConfig.preferences`; None keeps it as it was."""

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if self.start_from is not None:
            for name in ("model", "projector", "align_steps"):
                if (given := getattr(self, name)) and self.changes(name):
                    raise ValueError(
                        f"{name} {given} is for a new model, not for that of start_from "
                        f"{self.start_from}"
                    )
        elif self.tower is None:
            raise ValueError("a new model needs a tower, such as embedded-384, or give start_from")
        if self.schedule == "cosine" and self.changes("tail"):
            raise ValueError(f"tail {self.tail} is for the schedule linear_tail, got cosine")
        if self.defects and self.loss != "default":
            raise ValueError(
                f"defects {', '.join(self.defects)} are for the loss default, got {self.loss}"
            )
        if not self.phases and self.sight is None and not self.tower_steps:
            raise ValueError("phases is empty, and neither sight nor tower_steps is given")
        if self.sight is not None and (self.tower_steps or self.start_from is None):
            raise ValueError(
                "sight needs start_from, whose vectors the projector learns to give, and no "
                f"tower_steps, got {self.tower_steps}"
            )
        if self.tower_steps and self.start_from is None:
            raise ValueError(
                f"tower_steps {self.tower_steps} needs start_from: the heads that teach the tower "
                "read an aligned projector"
            )
        return self

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """The phase that a step, counted from 0, belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML mapping with `key.sub=value` overrides applied, unchecked.

    Raises:
        TrainConfigError: the file is missing, not YAML, holds no mapping, or has a key twice.
    """
    try:
        values: Any = plain_yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainConfigError(f"no training configuration at {path}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except plain_yaml.DoubledKeyError as error:
        raise TrainConfigError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise TrainConfigError(f"{path} must hold a mapping, got {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in nested mappings; the value is read as YAML."""
    name, separator, text = override.partition("=")
    if not separator:
        raise TrainConfigError(f"an override must read key=value, got {override!r}")
    *parents, last = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise TrainConfigError(f"{override!r}: {parent} is not a mapping")
    try:
        values[last] = plain_yaml.load(text)
    except yaml.YAMLError as error:
        raise TrainConfigError(
            f"{override!r} is not YAML: {' '.join(str(error).split())}"
        ) from None
    except plain_yaml.DoubledKeyError as error:
        raise TrainConfigError(f"{override!r}: {error}") from None

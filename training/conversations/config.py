"""The configuration of a training on conversations about pictures."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rediff_model.sampling.params import Compat
from training.config import Strict, Training
from training.data.segment_labels import Occurrences

Part = Literal["language", "projector", "vision"]
Weight = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class SourceShape(Strict):
    """A data set: its rows, its pictures, and its share of the mixture."""

    name: str = Field(min_length=1)
    rows: str
    """A `.json` or `.jsonl` file, or a pattern of tar shards such as `data/*.tar`."""
    images: str | None = None
    """A folder, or a pattern of tar shards; None: the shards of `rows`, or the rows' folder."""
    weight: float = Field(1.0, gt=0)


class DialogueData(Strict):
    """Conversations to train on."""

    kind: Literal["conversations"]
    sources: tuple[SourceShape, ...] = ()
    validation: SourceShape | None = None
    """Held-out conversations, for their loss."""
    validation_samples: int = Field(64, gt=0)
    max_length: int = Field(8192, gt=0)
    """Rows of a sample, its picture's included; what is longer is cut."""
    fill_canvas: bool = False
    """Fill the answer up to the model's canvas with trained end-of-turn tokens, as it is served."""
    occurrences: Occurrences = "unique"
    group_lengths: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [source.name for source in self.sources]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources have the name {doubled[0]}")
        return self


class LossShape(Strict):
    """Fields as in `training.loss.masked_diffusion.Objective`."""

    compat: Compat = "default"
    refine: bool = True
    replace_rate: float = Field(0.05, ge=0, le=1)
    rate_floor: float = Field(0.0, ge=0, le=1)
    weights: tuple[Weight, Weight, Weight, Weight] = (1.0, 1.0, 1.0, 1.0)
    """Of masked, replaced, clean and corrected tokens."""
    stutter: float = Field(0.0, ge=0, le=1)
    """Share of the replaced tokens that repeat the token before; the others are any token."""
    confusion: float = Field(0.0, ge=0, le=1)
    """Share of them that become a weaker model's, at the same place in the row's `draft`; where
    that has no token, they become any token."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any(self.weights):
            raise ValueError(f"weights {list(self.weights)} leave nothing to train")
        if self.stutter + self.confusion > 1:
            raise ValueError(
                f"stutter {self.stutter} and confusion {self.confusion} exceed 1 together"
            )
        if self.confusion and self.compat == "official":
            raise ValueError(f"confusion {self.confusion} is not part of compat official")
        if self.confusion and not (self.refine and self.replace_rate):
            raise ValueError(
                f"confusion {self.confusion} needs tokens to be replaced, got refine "
                f"{self.refine} and replace_rate {self.replace_rate}"
            )
        return self


class Rates(Strict):
    """Learning rates of AdamW, by part; adapters are part of the language model."""

    language: float = Field(5e-6, gt=0)
    projector: float = Field(5e-6, gt=0)
    vision: float = Field(1e-6, gt=0)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    """Of matrices only."""


class LoraShape(Strict):
    """Low-rank adapters on the language model's matrices; merged when the run ends."""

    rank: int = Field(64, gt=0)
    alpha: int = Field(128, gt=0)
    """Adapters count alpha / rank times."""
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )


class DialogueTraining(Training):
    """Stage I on conversations: any checkpoint that `rediff serve` reads."""

    data: DialogueData
    start_from: str
    """A checkpoint folder or hub id."""
    prefix_attention: Literal["keep", "prefix"] = "keep"
    """`prefix` makes a model whose prompt does not see the canvas out of one whose prompt does."""
    train: tuple[Part, ...] = Field(("language", "projector", "vision"), min_length=1)
    lora: LoraShape | None = None
    loss: LossShape = LossShape()
    batch_size: int = Field(64, gt=0)
    """Samples a step, over all processes."""
    micro_batch: int = Field(1, gt=0)
    """Samples that go through the model together."""
    steps: int | None = Field(None, gt=0)
    epochs: float = Field(1.0, gt=0)
    """Where no steps are given: until the rarest source, by its weight, was seen so often."""
    rates: Rates = Rates()
    schedule: Literal["cosine", "linear_tail"] = "cosine"
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Of the running average of the weights; 0 keeps none."""
    checkpointing: bool = False
    """Compute layers again in the backward pass instead of keeping their insides."""
    prefetch: int = Field(2, ge=0)
    log_every: int = Field(10, gt=0)
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch {self.micro_batch}"
            )
        if self.steps is not None and self.changes("epochs"):
            raise ValueError(f"steps {self.steps} and epochs {self.epochs}: one of them is enough")
        if self.loss.compat == "official" and self.data.fill_canvas:
            raise ValueError("data.fill_canvas is not part of loss.compat official")
        if self.lora is not None and "language" not in self.train:
            raise ValueError(f"lora adapts the language model, but train is {list(self.train)}")
        if len(set(self.train)) != len(self.train):
            raise ValueError(f"train names a part twice: {list(self.train)}")
        return self

    @property
    def parts(self) -> int:
        """Micro-batches of a step, over all processes."""
        return self.batch_size // self.micro_batch

"""The configuration of Stage II on conversations."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from training.config import Strict
from training.conversations.config import DialogueTraining, SourceShape
from training.correction.experts.build import ExpertShape


class DraftShape(Strict):
    """What to draft; fields as in `training.correction.drafts.DraftSettings`."""

    source: SourceShape
    """Rows whose first question is asked; its answer is the reference that the expert sees."""
    samples: int = Field(10000, gt=0)
    """Drafted in a round; each round takes the next rows."""
    tokens_per_step: tuple[int, ...] = Field((1, 4, 8), min_length=1)
    every: bool = False
    temperature: float = Field(0.0, ge=0)
    batch_size: int = Field(16, gt=0)


class DialogueCorrection(DialogueTraining):
    """Stage II: the model drafts, an expert corrects, the model learns the corrections."""

    rounds: int = Field(1, gt=0)
    drafts: DraftShape
    expert: ExpertShape = ExpertShape(kind="openai")
    correction_share: float = Field(1.0, gt=0, le=1)
    """Share of corrected drafts among the samples; the others come from `data.sources`."""

    @model_validator(mode="after")
    def _check_stage2(self) -> Self:
        if self.expert.kind != "openai":
            raise ValueError(
                f"only scenes have an expert of the kind {self.expert.kind}; pictures need openai"
            )
        if bool(self.data.sources) != (self.correction_share < 1):
            raise ValueError(
                f"correction_share is {self.correction_share}, data.sources has "
                f"{len(self.data.sources)} entries: other samples need both, or neither"
            )
        return self

"""What an experiment is: branches of training that start from each other, and ways to decode."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from training.config import Checkpoint, ModelShape, Optimiser, Phase, Strict, Training

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

Recipe = Literal["mask", "stage1", "stage2"]


@dataclass(frozen=True, slots=True)
class Branch:
    """One training run, `units` times as long as the size's unit."""

    name: str
    label: str
    recipe: Recipe
    units: float = 1.0
    after: str | None = None
    """The branch whose checkpoint it starts from; None is a new model."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Laid over the recipe's values, nested."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """A question, the branches that answer it, and how they decode."""

    name: str
    question: str
    branches: tuple[Branch, ...]
    shown: tuple[str, ...]
    """The branches that are evaluated; all of them have had equal optimiser steps."""
    tokens_per_step: tuple[int, ...] = (1, 4, 8)
    refine: tuple[bool, ...] = (True,)
    refresh: tuple[int | None, ...] = (1,)
    """Values of `prompt_refresh_interval` for models with full attention; None is never."""

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for branch in self.branches:
            if branch.after is not None and branch.after not in seen:
                raise ValueError(f"branch {branch.name} starts from {branch.after}, not before it")
            if branch.name in seen:
                raise ValueError(f"two branches are named {branch.name}")
            seen.add(branch.name)
        if unknown := set(self.shown) - seen:
            raise ValueError(f"no branch is named {sorted(unknown)[0]}")

    def branch(self, name: str) -> Branch:
        return next(branch for branch in self.branches if branch.name == name)

    def lineage(self, name: str) -> list[Branch]:
        """The branches a branch is made of, first to last."""
        branch = self.branch(name)
        return [*(self.lineage(branch.after) if branch.after else []), branch]

    def needed(self, given: Collection[str] = ()) -> Iterator[Branch]:
        """The branches that some shown one is made of, in order; nothing of what is `given`."""
        used: set[str] = set()
        for name in self.shown:
            for branch in reversed(self.lineage(name)):
                used.add(branch.name)
                if branch.name in given:
                    break
        return (branch for branch in self.branches if branch.name in used)

    def without(self, names: Collection[str]) -> Experiment:
        """Without showing some branches. Raises ValueError if none is left."""
        left = tuple(name for name in self.shown if name not in names)
        if not left:
            raise ValueError(f"experiment {self.name}: every branch is left out")
        return replace(self, shown=left)


class Given(Strict):
    """A branch that was trained elsewhere."""

    checkpoint: Checkpoint
    steps: int = Field(ge=0)
    """Optimiser steps since its new model."""


class Size(Training):
    """How large an experiment is: the model, the data, the length of a unit, the recipes."""

    label: str
    tower: Checkpoint
    """The frozen tower: a checkpoint's, or a file of scripts/convert_efficientnet.py."""
    projector: Checkpoint | None = None
    """Whose projector new models begin with, instead of an alignment."""
    model: ModelShape = ModelShape()
    scenes: int = Field(10000, gt=0)
    validation_scenes: int = Field(192, gt=0)
    align_steps: int = Field(800, ge=0)
    pictures: int = Field(8, gt=0)
    wordings: int = Field(2, gt=1)
    compiled: bool = False
    unit: int = Field(gt=0)
    """Optimiser steps of a branch of one unit."""
    optimiser: Optimiser = Optimiser()
    """Of a new model."""
    resumed: Optimiser = Optimiser(muon=0.01, adamw=1.5e-3, projector=2e-4)
    """Of a branch that starts from another one, whatever its recipe."""
    base: tuple[Phase, ...] = ()
    """What a new model is trained on; if empty, the units of its branch on its recipe's mix."""
    recipes: dict[Recipe, dict[str, Any]]
    """`phase` of each recipe, and for `stage2` also `drafts`, `expert`, `correction_share`, …"""
    given: dict[str, Given] = Field(default_factory=dict)
    """Branches, by name, that need no training."""
    left_out: tuple[str, ...] = ()
    """Branches, by name, that are not shown."""
    evaluation_scenes: int = Field(120, gt=0)
    """Scenes of each evaluation seed."""
    evaluation_seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((1, 2, 3), min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for recipe in get_args(Recipe):
            if "phase" not in self.recipes.get(recipe, {}):
                raise ValueError(f"recipes.{recipe}.phase is missing")
        return self

    def values(self, branch: Branch, start_from: Path | None, taken: int = 0) -> dict[str, Any]:
        """The configuration of a branch: of `SceneTraining`, or of `SceneCorrection`.

        `taken` is how many optimiser steps `start_from` has had: a branch that goes on draws other
        canvases than those steps did.
        """
        recipe = dict(self.recipes[branch.recipe])
        new = start_from is None and "start_from" not in branch.overrides
        phase = {**recipe.pop("phase"), "steps": round(self.unit * branch.units)}
        phases = [phase]
        if start_from is None and self.base:
            phases = [part.model_dump() for part in self.base]
        values: dict[str, Any] = {
            **{name: getattr(self, name) for name in Training.model_fields},
            "seed": self.seed + taken,
            "tower": str(self.tower),
            "data": {"scenes": self.scenes, "validation_scenes": self.validation_scenes},
            "align_steps": self.align_steps if new and not self.projector else 0,
            "pictures": self.pictures,
            "wordings": self.wordings,
            "compiled": self.compiled,
            "optimiser": (self.optimiser if start_from is None else self.resumed).model_dump(),
            "phases": phases,
            **recipe,
        }
        if start_from is not None:
            values["start_from"] = str(start_from)
        if new:
            values["model"] = self.model.model_dump()
            if self.projector is not None:
                values["projector"] = str(self.projector)
        return _laid_over(values, branch.overrides, phase)


def _laid_over(
    values: dict[str, Any], overrides: Mapping[str, Any], phase: dict[str, Any]
) -> dict[str, Any]:
    """`values` with `overrides`; the key `phase` goes to the one phase."""
    result = dict(values)
    for key, value in overrides.items():
        if key == "phase":
            result["phases"] = [{**phase, **value}]
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = {**result[key], **value}
        else:
            result[key] = value
    return result

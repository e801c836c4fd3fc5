"""What a caller may set about sampling, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rediff_model.config import Preferences, TokenIds
    from rediff_model.sampling.template import Template

Remasking = Literal["low_confidence", "random"]
Compat = Literal["default", "official"]

DEFAULT_TOKENS_PER_STEP = 4
RANDOM_SEED = -1
"""The seed by which many clients ask for a new one each time."""


class SettingsError(ValueError):
    """A sampler setting that cannot be used; the message names the field and the value."""


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """How one caption is denoised.

    Raises:
        SettingsError: a value out of range, or fields that exclude each other.
    """

    canvas_length: int = 128
    """Tokens generated at most."""
    block_length: int | None = None
    """Blocks are denoised one after the other; None is one block, the whole canvas."""
    tokens_per_step: int | None = None
    """Tokens revealed a step; 4, or 1 with `reveal_threshold`, when neither this nor `steps` is
    given."""
    steps: int | None = None
    """Forward passes over all blocks, instead of `tokens_per_step`."""
    refine: bool = True
    """Replace revealed tokens by their new predictions (ReDiff) or freeze them (LLaDA-V)."""
    refine_fraction: float | None = None
    """Only this part of the revealed tokens, the most confident ones; None and 0 mean all."""
    refine_start: float = 1.0
    """Refine only in this last part of a block's steps."""
    reveal_threshold: float | None = None
    """Besides what `tokens_per_step` asks for, by default 1 then, reveal every position whose
    confidence is above this. The number of steps adapts to the picture."""
    edit_threshold: float = 0.0
    """Replace a revealed token only by a prediction whose confidence is above this; 0 is always."""
    end_threshold: float | None = None
    """Reveal every predicted stop whose confidence is above this, beside what the schedule asks
    for; stop sequences of several tokens are not meant. A step then reveals `tokens_per_step`
    others, however few are left. Rows behind a stop that a step left where it was leave the forward
    pass until a step moves the stop; they stay if there is a suffix."""
    extra_refine_steps: int | None = None
    """Forward passes that only refine, at most, after the last mask of a block; they end when
    nothing changes, or at a canvas that was there before. A complete draft takes the steps of the
    block for that. None leaves it to the checkpoint, see `preferring`, and is 0 by itself."""
    temperature: float = 0.0
    seed: int | None = None
    """Makes temperature and random remasking reproducible in any batch; None and `RANDOM_SEED`
    draw a new one."""
    cfg_scale: float = 0.0
    """Guidance against a prompt of mask tokens; 0 is off."""
    remasking: Remasking = "low_confidence"
    """What is revealed first: the most confident positions, or random ones."""
    draft: tuple[int, ...] | None = None
    """Ids to start from; mask ids in it, and positions beyond it, are to be filled. With a stop at
    its end it is a complete caption, which `refine` revises until nothing changes."""
    stop: tuple[tuple[int, ...], ...] | None = None
    """Id sequences that end the caption; None is the model's stop token, () is no stop."""
    suffix: tuple[int, ...] = ()
    """Fixed ids behind the canvas which the model sees and does not change."""
    template: Template | None = None
    """Fixed ids with holes: only holes are written, and none ends the caption. The canvas is then
    as long as the template with its longest choices and a stop, in one block."""
    alternatives: int = 0
    """Tokens reported of each position with their probabilities, the likeliest first, from the pass
    in which the position was last written or confirmed."""
    compat: Compat = "default"
    """`official` repeats the defects of the official sampler (docs/fidelity.md)."""

    @classmethod
    def from_preset(
        cls, name: str | None, explicit: Mapping[str, Any], default: str = "rediff"
    ) -> SamplerSettings:
        """A preset with explicit fields instead of its own; `steps` and `tokens_per_step` replace
        each other.

        A name of None is `default`, the checkpoint's preset; it is `rediff` where a pace is given.

        Raises:
            SettingsError: there is no such preset or field, or a value is out of range.
        """
        paced = not explicit.keys().isdisjoint(("steps", "tokens_per_step"))
        if name is None:
            name = "rediff" if paced else default
        if name not in PRESETS:
            raise SettingsError(f"preset must be one of {tuple(PRESETS)}, got {name!r}")
        known = {field.name for field in fields(cls)}
        for field in explicit:
            if field not in known:
                raise SettingsError(f"{field} is no sampler setting")
        preset = PRESETS[name]
        if paced:
            preset = replace(preset, steps=None, tokens_per_step=None)
        return replace(preset, **explicit)

    def preferring(self, checkpoint: Preferences) -> SamplerSettings:
        """With what a checkpoint prefers, where these settings leave it open.

        A number of steps or a draft leaves nothing open. A block length must divide the canvas.
        Extra steps are for a canvas in one block, and not for `compat="official"`.
        """
        if self.steps is not None or self.draft is not None:
            return self
        lengths = checkpoint.block_lengths
        place = self._tokens_a_step - 1
        block, extra = self.block_length, self.extra_refine_steps
        divides = place < len(lengths) and self.canvas_length % lengths[place] == 0
        if block is None and divides and self.template is None:
            block = lengths[place]
        whole = block is None or block == self.canvas_length
        if extra is None and whole and self.refine and self.compat == "default":
            extra = checkpoint.extra_refine_steps
        return replace(self, block_length=block, extra_refine_steps=extra)

    def __post_init__(self) -> None:
        if self.template is not None:
            self._take_template(self.template)
        self._check_lengths()
        if self.alternatives < 0:
            raise SettingsError(f"alternatives must be 0 or more, got {self.alternatives}")
        for name in ("temperature", "cfg_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SettingsError(f"{name} must be 0 or more, got {value}")
        for name in (
            "refine_fraction",
            "refine_start",
            "reveal_threshold",
            "edit_threshold",
            "end_threshold",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SettingsError(f"{name} must lie in 0 to 1, got {value}")
        if self.extra_refine_steps is not None and self.extra_refine_steps < 0:
            raise SettingsError(
                f"extra_refine_steps must be 0 or more, got {self.extra_refine_steps}"
            )
        if self.seed == RANDOM_SEED:
            object.__setattr__(self, "seed", None)
        elif self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise SettingsError(f"seed must lie in -2^63 to 2^63 - 1, got {self.seed}")
        if self.remasking not in get_args(Remasking):
            raise SettingsError(
                f"remasking must be one of {get_args(Remasking)}, got {self.remasking!r}"
            )
        if self.compat not in get_args(Compat):
            raise SettingsError(f"compat must be one of {get_args(Compat)}, got {self.compat!r}")
        if self.compat == "official":
            off = {
                "reveal_threshold": None,
                "edit_threshold": 0,
                "end_threshold": None,
                "extra_refine_steps": 0,
            }
            for name, neutral in off.items():
                if (value := getattr(self, name)) not in (None, neutral):
                    raise SettingsError(f"compat official has no {name}, got {value}")
        if self.draft is not None and len(self.draft) > self.canvas_length:
            raise SettingsError(
                f"draft has {len(self.draft)} tokens, canvas_length is {self.canvas_length}"
            )
        if any(len(sequence) == 0 for sequence in self.stop or ()):
            raise SettingsError(f"stop must not hold an empty sequence, got {self.stop}")

    def _take_template(self, template: Template) -> None:
        """Give the canvas the template's length."""
        off = {"block_length": None, "draft": None, "stop": None, "suffix": (), "compat": "default"}
        for name, neutral in off.items():
            if (value := getattr(self, name)) != neutral:
                raise SettingsError(f"{name} does not go with a template, got {value}")
        if template.canvas_length > self.canvas_length:
            raise SettingsError(
                f"template has {template.canvas_length} tokens with its stop, canvas_length is "
                f"{self.canvas_length}"
            )
        object.__setattr__(self, "canvas_length", template.canvas_length)

    def _check_lengths(self) -> None:
        for name in ("canvas_length", "block_length", "tokens_per_step", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be 1 or more, got {value}")
        if self.canvas_length % self.block:
            raise SettingsError(
                f"block_length {self.block} does not divide canvas_length {self.canvas_length}"
            )
        if self.steps is not None:
            if self.tokens_per_step is not None:
                raise SettingsError(
                    f"steps {self.steps} and tokens_per_step {self.tokens_per_step} "
                    "exclude each other"
                )
            if self.steps % self.blocks:
                raise SettingsError(f"steps {self.steps} is no multiple of {self.blocks} blocks")

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.canvas_length if self.block_length is None else self.block_length

    @property
    def blocks(self) -> int:
        return self.canvas_length // self.block

    @property
    def steps_per_block(self) -> int:
        """Forward passes of a block at most, until its last mask is revealed."""
        if self.steps is not None:
            return self.steps // self.blocks
        return max(1, -(-self._to_fill // self._tokens_a_step))

    @property
    def _to_fill(self) -> int:
        """Tokens of a block that are to be revealed."""
        return self.block if self.template is None else self.template.masks

    @property
    def _tokens_a_step(self) -> int:
        """`tokens_per_step`, or what it is by default."""
        default = DEFAULT_TOKENS_PER_STEP if self.reveal_threshold is None else 1
        return self.tokens_per_step or default

    @property
    def least_revealed(self) -> int:
        """Positions that a step reveals at least; 0 is what the schedule says."""
        if self.reveal_threshold is None and self.end_threshold is None:
            return 0
        return -(-self._to_fill // self.steps_per_block)

    @property
    def shrinks(self) -> bool:
        """Whether rows behind a settled stop leave the forward pass. A suffix stands behind it, and
        a template has no such rows."""
        return self.end_threshold is not None and not self.suffix and self.template is None

    @property
    def extra_steps(self) -> int:
        """Forward passes of a block at most after its last mask."""
        return (self.extra_refine_steps or 0) if self.refines else 0

    @property
    def planned_steps(self) -> int:
        """Forward passes of a caption at most."""
        template = self.template
        passes = 0 if template is None else template.passes
        if template is not None and not template.masks:
            return passes
        return passes + (self.steps_per_block + self.extra_steps) * self.blocks

    @property
    def refine_from(self) -> int:
        """First step of a block that refines; `steps_per_block` if none does.

        The ceiling sees the binary rounding of the product, as the official one does.
        """
        if not self.refine:
            return self.steps_per_block
        return self.steps_per_block - math.ceil(self.steps_per_block * self.refine_start)

    @property
    def refines(self) -> bool:
        """Whether any step refines."""
        return self.refine_from < self.steps_per_block

    def stops(self, ids: TokenIds) -> tuple[tuple[int, ...], ...]:
        """The stop sequences in force."""
        return ((ids.stop,),) if self.stop is None else self.stop


PRESETS: Mapping[str, SamplerSettings] = {
    "rediff": SamplerSettings(),
    "mask": SamplerSettings(refine=False),
    "adaptive": SamplerSettings(tokens_per_step=4, reveal_threshold=0.85, extra_refine_steps=8),
    "careful": SamplerSettings(tokens_per_step=1, reveal_threshold=0.8),
}
"""`rediff` reveals and revises, 4 tokens a step; `mask` is plain denoising; `adaptive` takes the
fewest forward passes at a Coverage no more than .01 below that of 4 tokens a step without extra
steps; `careful` takes no token that it is not sure of besides the one a step must reveal, in the
checkpoint's block length.

`adaptive` was chosen with the embedded checkpoint of two rounds of Stage II, on three times 240
test scenes (seeds 71 to 73), where 4 tokens a step alone took 26.4 forward passes for a Coverage of
.926, and with the checkpoint's 4 `extra_refine_steps` 27.9 for .939. With 4 tokens a step and 8
such steps the threshold .9 gave 17.5 and .926, .85 16.2 and .929, and .8 on two of these seeds 14.7
and .904, .020 less than 4 tokens alone. On 480 others (seed 80) the preset took 16.3 for .917, 4
tokens alone 26.4 for .916, and with the extra steps 27.9 for .933. So of the 1,200 scenes it gives
.002 more than 4 tokens a step alone and .012 less than what the checkpoint prefers.
`python -m benchmarks.adaptive --n 48 --seed 5` asks the like of any checkpoint; others need other
thresholds.
"""

"""What captions of a very large data set take by arithmetic: GPU time, bytes, failures.

Operations and bytes of a step are those of `benchmarks.cost` at the shape of LLaDA 8B in bfloat16,
rows and tiles of a picture those of `rediff_model.vision.tiling`, and sizes of rows and shards
those that `server.bulk` writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final, Literal

from benchmarks import cost
from benchmarks.cost import Cost
from rediff_model.config import ModelConfig, VisionConfig
from rediff_model.vision.tiling import layout
from server.engine.memory import SHARE, SLACK

ITEMSIZE: Final = 2
"""bfloat16."""
TAR_BLOCK: Final = 512
MODEL: Final = ModelConfig()
"""LLaDA-V 8B."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is assumed; each field is an option of the same name."""

    images: float = 1e9
    gpus: int = 256
    mfu: float = 0.3
    """Part of the peak operations a second that products and attention reach."""
    mbu: float = 0.6
    """Part of the peak bandwidth that reads of weights, keys and values reach."""
    captions_per_second: float = 0.0
    """Of one GPU, measured; 0: by the cost model."""
    peak_tflops: float = 989.0
    """Dense bfloat16, H200 SXM: half of the 1,979 with sparsity of the data sheet."""
    bandwidth_tb: float = 4.8
    memory_gb: float = 141.0
    price: float = 3.0
    """Of a GPU for an hour, in whatever currency."""
    attention: Literal["prefix", "full"] = "prefix"
    refresh: int = 1
    """With full attention: the prompt is computed again every so many steps."""
    tokens_per_step: int = 4
    width: int = 640
    height: int = 480
    question_rows: int = 80
    """Rows of the prompt besides the image's: system text, template, question."""
    max_batch: int = 32
    image_kb: float = 90.0
    caption_bytes: float = 550.0
    """128 tokens of English."""
    row_overhead: float = 160.0
    """What a row holds besides the caption: id, source, figures."""
    shard_size: int = 1000
    prepare_ms: float = 32.0
    """Processor time of decoding and tiling a picture."""
    failures: float = 2e-5
    """Interruptions a GPU-hour."""
    restart_minutes: float = 5.0
    bad_images: float = 1e-3
    """Part of the pictures that cannot be read."""


def tower(config: VisionConfig, out: int, tiles: int) -> float:
    """Operations of the vision tower and the projector (two layers to `out`)."""
    rows, hidden = config.patches_per_side**2, config.hidden_size
    layer = 2 * rows * (4 * hidden**2 + 2 * hidden * config.intermediate_size)
    layer += 4 * rows * rows * hidden
    # Features are those before the last layer.
    projector = 2 * rows * (hidden * out + out * out)
    return float(tiles * (layer * (config.num_hidden_layers - 1) + projector))


@dataclass(frozen=True, slots=True)
class Caption:
    """What one caption costs a GPU."""

    prompt_rows: int
    tiles: int
    batch: int
    """Requests that run at once."""
    steps: int
    tower_flops: float
    prompt_flops: float
    """Computed once; 0 with full attention, whose prompts are computed in steps."""
    step_flops: float
    """Of all steps."""
    seconds: float
    """Of a GPU whose batch is full."""

    @property
    def flops(self) -> float:
        return self.tower_flops + self.prompt_flops + self.step_flops


def caption(plan: Plan) -> Caption:
    """Tower, prompt and steps of a caption in a full batch.

    Raises:
        ValueError: not even one request fits into the memory.
    """
    language, canvas = MODEL.language, MODEL.canvas_length
    image = layout((plan.width, plan.height), MODEL)
    prompt = image.tokens + plan.question_rows
    batch = min(plan.max_batch, fitting(plan, prompt + canvas))
    steps = ceil(canvas / plan.tokens_per_step)
    vision = tower(MODEL.vision, language.hidden_size, image.tiles)
    cached = cost.engine_step(language, prompt, canvas, batch, ITEMSIZE)
    if plan.attention == "prefix":
        prefill = cost.forward(language, prompt, prompt, head_rows=0, itemsize=ITEMSIZE)
        refreshed, fresh = 0, Cost(0.0, 0.0)
    else:
        # A step with the prompt's rows stands for itself: nothing is prefilled.
        prefill = Cost(0.0, 0.0)
        refreshed = ceil(steps / plan.refresh)
        rows = prompt + canvas
        one = cost.forward(language, rows, rows, head_rows=canvas, itemsize=ITEMSIZE)
        fresh = Cost(batch * one.flops, one.bytes)
    cached_steps = steps - refreshed
    seconds = _seconds(plan, Cost(vision, 0.0)) + _seconds(plan, prefill)
    seconds += refreshed * _seconds(plan, fresh) / batch
    seconds += cached_steps * _seconds(plan, cached) / batch
    return Caption(
        prompt_rows=prompt,
        tiles=image.tiles,
        batch=batch,
        steps=steps,
        tower_flops=vision,
        prompt_flops=prefill.flops,
        step_flops=(refreshed * fresh.flops + cached_steps * cached.flops) / batch,
        seconds=1 / plan.captions_per_second if plan.captions_per_second else seconds,
    )


def fitting(plan: Plan, rows: int) -> int:
    """Requests of so many rows whose keys and values the engine would take in.

    Raises:
        ValueError: none.
    """
    language = MODEL.language
    weights = ITEMSIZE * (
        cost.forward(language, 0, 0, head_rows=0, itemsize=1).bytes
        + 2 * language.hidden_size * language.vocab_size
    )
    values = 2 * language.num_hidden_layers * language.num_key_value_heads * language.head_dim
    free = SHARE * (1e9 * plan.memory_gb - weights)
    requests = int(free / (SLACK * values * ITEMSIZE * rows))
    if requests < 1:
        raise ValueError(f"memory_gb {plan.memory_gb:g} holds no request of {rows} rows")
    return requests


def _seconds(plan: Plan, work: Cost) -> float:
    """Operations or bytes, whichever takes longer."""
    computing = work.flops / (1e12 * plan.peak_tflops * plan.mfu)
    return max(computing, work.bytes / (1e12 * plan.bandwidth_tb * plan.mbu))


def hours(plan: Plan) -> float:
    """GPU-hours of all captions, with what interruptions cost."""
    busy = plan.images * caption(plan).seconds / 3600
    return busy * (1 + plan.failures * plan.restart_minutes / 60)


def row_bytes(plan: Plan) -> float:
    """Bytes of a caption's row in a table or a journal."""
    return plan.caption_bytes + plan.row_overhead


def sample_bytes(plan: Plan) -> float:
    """Bytes of a sample in a shard: three members, each with a header, padded to blocks.

    Padding is taken as half a block, its mean.
    """
    data = 1000 * plan.image_kb + plan.caption_bytes + row_bytes(plan)
    return data + 3 * (TAR_BLOCK + TAR_BLOCK / 2)

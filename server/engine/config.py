"""The engine's configuration, resolved once from the server's settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Which checkpoint to run, where, and how much at once."""

    model: str
    """A folder or a hub id."""
    revision: str | None = None
    device: str = "auto"
    """`auto`: CUDA where there is one, else the CPU; or a torch device name."""
    dtype: str = "auto"
    """`auto`: bfloat16 on CUDA, float32 elsewhere; or a torch dtype name."""
    threads: int | None = None
    """Threads of torch on the CPU; None leaves torch's own choice."""
    max_batch: int = 16
    """Requests that share a step."""
    max_rows: int | None = None
    """Prompt and canvas rows of everything that runs; None: as many as free memory holds."""
    max_prefill_rows: int = 1024
    """Prompt rows that may join in one step, so that long prompts do not stall who is running."""
    prefix_refresh_interval: int | None = 1
    """With full prefix attention, steps after which a prompt is computed again: 1 is exact, None
    is never. Prefix attention needs no refresh."""
    cuda_graphs: bool = False
    """Record steps on a GPU and replay them while nobody joins or leaves."""
    compile: bool = False
    """Compile what lies between the attentions of the language model, before it is ready."""
    vision_cache_bytes: int = 256 * 2**20
    """Features of pictures that are kept for when the same picture comes again."""
    max_queue: int = 256
    """Requests that may wait besides the running ones."""
    max_canvas: int = 1024
    """Longest canvas a request may ask for, in tokens."""
    max_prompt_tokens: int = 1024
    """Longest question of a request, in tokens."""
    prepare_threads: int = 2
    """Pictures decoded and encoded at the same time; bounds the memory that pictures take."""
    request_timeout: float = 60.0
    """Seconds a request may take when it names no limit of its own."""
    max_request_timeout: float = 600.0
    """Largest limit that a request may name, in seconds."""

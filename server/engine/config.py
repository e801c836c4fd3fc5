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

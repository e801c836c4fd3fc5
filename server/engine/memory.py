"""How much memory keys and values may take on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rediff_model.machine import available_memory

if TYPE_CHECKING:
    from rediff_model.config import LanguageConfig

SHARE = 0.5
"""Part of the free memory for keys and values: the rest is for activations and for buffers that
are copied while they grow."""

SLACK = 1.25
"""Buffers are rounded up by so much at most."""


def row_bytes(config: LanguageConfig, dtype: torch.dtype) -> int:
    """Keys and values of one row over all layers, as buffers hold them."""
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return int(SLACK * values * dtype.itemsize)


def free_bytes(device: torch.device) -> int | None:
    """Memory that keys and values may take now; None where that cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(SHARE * free)
    limits = [
        limit for limit in (available_memory(), _left(Path("/sys/fs/cgroup"))) if limit is not None
    ]
    return int(SHARE * min(limits)) if limits else None


def _left(group: Path) -> int | None:
    """Bytes that the process's control group may still take; None when it has no limit."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))

"""Triton kernels run where there is a GPU or the interpreter; `test_interpreter` starts the latter.

The interpreter must be chosen before triton is imported, which other packages do as well: hence
a process of its own, and not a variable that would reach other tests.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_triton_*.py"]


@pytest.fixture
def device() -> str:
    """Where kernels run here."""
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What a kernel leaves unwritten is NaN or the type's lowest number, not what was there."""
    if request.path.name.startswith("test_triton_"):
        monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
        monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))


def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`make` with the worst content."""

    def allocate(*args: object, **options: object) -> Tensor:
        made = make(*args, **options)
        if made.dtype == torch.bool:
            return made.fill_(True)
        if made.dtype.is_floating_point:
            return made.fill_(torch.nan)
        return made.fill_(torch.iinfo(made.dtype).min)

    return allocate

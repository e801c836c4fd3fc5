"""A template that is being filled: what its canvas says now, and what the next pass sees.

Shape suffixes: C canvas rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kernels.canvas import FIXED, HOLE, OPENING

if TYPE_CHECKING:
    from torch import Tensor

    from rediff_model.config import TokenIds
    from rediff_model.sampling.template import Choosing, Layout


@dataclass(frozen=True, slots=True)
class Filling:
    """A template on its way."""

    choosing: Choosing
    layout: Layout
    """What the canvas says: that of the choices made."""
    trial: Layout
    """What the next forward pass sees."""

    @classmethod
    def of(cls, choosing: Choosing, ids: TokenIds) -> Filling:
        layout = choosing.template.layout(choosing.chosen, ids.mask, ids.stop)
        return cls(choosing, layout, choosing.layout(ids.mask, ids.stop))

    @property
    def settled(self) -> bool:
        """Whether all choices are made."""
        return self.choosing.hole is None

    @property
    def fills(self) -> bool:
        """Whether tokens are to be filled in now."""
        return self.settled and self.choosing.template.masks > 0

    def rules(self) -> Tensor:
        """What the template says of each position, [C]."""
        free_C, opening_C = torch.tensor(self.trial.free), torch.tensor(self.trial.opening)
        return torch.where(opening_C, OPENING, torch.where(free_C, HOLE, FIXED))

"""Random rows for the selection kernels, and what the reference makes of them in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kernels import noise, reference

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Arguments of a selection without the logits."""

    suppressed_S: Tensor
    suppress_T: Tensor
    avoided_id: int
    avoid_T: Tensor
    temperature_T: Tensor | None
    key_T2: Tensor | None

    @classmethod
    def draw(cls, rows: int, columns: int, generator: torch.Generator, *, noisy: bool) -> Case:
        """Flags that differ between the rows; of the temperatures some are 0."""
        ids_S = torch.randperm(columns, generator=generator)[: min(4, columns // 2)]
        key_T2 = torch.randint(-(2**62), 2**62, (rows, 2), generator=generator)
        heat_T = torch.rand(rows, generator=generator, dtype=torch.float64) * 2
        return cls(
            suppressed_S=ids_S[1:],
            suppress_T=torch.arange(rows) % 2 == 0,
            avoided_id=int(ids_S[0]),
            avoid_T=torch.arange(rows) % 3 == 0,
            temperature_T=heat_T.masked_fill(torch.arange(rows) % 4 == 1, 0.0) if noisy else None,
            key_T2=key_T2 if noisy else None,
        )

    @classmethod
    def plain(cls, rows: int) -> Case:
        """All ids allowed."""
        none_T = torch.zeros(rows, dtype=torch.bool)
        return cls(torch.zeros(0, dtype=torch.int64), none_T, 0, none_T, None, None)

    def arguments(self, device: str) -> tuple[object, ...]:
        """Positional arguments behind the logits."""
        values = (
            self.suppressed_S,
            self.suppress_T,
            self.avoided_id,
            self.avoid_T,
            self.temperature_T,
            self.key_T2,
        )
        return tuple(v.to(device) if isinstance(v, torch.Tensor) else v for v in values)

    def expect(self, logits_TV: Tensor) -> reference.Selection:
        """The reference in float64."""
        uniform_TV = None
        if self.key_T2 is not None:
            uniform_TV = noise.numbers(self.key_T2, logits_TV.shape[1])
        return reference.select_tokens(
            logits_TV.double().clone(),
            self.suppressed_S,
            self.suppress_T,
            self.avoided_id,
            self.avoid_T,
            self.temperature_T,
            uniform_TV,
            entropy=True,
        )


def assert_close(got: reference.Selection, want: reference.Selection, atol: float) -> None:
    """The same ids, and numbers within `atol`; entropy only where it was asked for."""
    assert got.ids_T.tolist() == want.ids_T.tolist()
    pairs = [(got.log_odds_T, want.log_odds_T), (got.logsumexp_T, want.logsumexp_T)]
    if got.entropy_T is not None and want.entropy_T is not None:
        pairs.append((got.entropy_T, want.entropy_T))
    for got_T, want_T in pairs:
        assert got_T.dtype == torch.float32
        torch.testing.assert_close(got_T.cpu().double(), want_T, atol=atol, rtol=1e-5)

"""Muon (Jordan et al. 2024) with float32 products on a CPU.

torch's own orthogonalises in bfloat16, which a CPU without matrix units for it emulates: a step of
the embedded model then takes ten seconds instead of a third of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Muon(torch.optim.Muon):
    """torch's Muon, its settings and its state, with products in the weights' own precision.

    Only `lr`, `weight_decay`, `momentum`, `nesterov`, `ns_coefficients`, `ns_steps` and `eps` have
    an effect; the learning rate of a matrix [A, B] is multiplied by sqrt(max(1, A / B)).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all matrices that have a gradient; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                momentum: Tensor = state["momentum_buffer"]
                momentum.lerp_(matrix.grad, 1 - group["momentum"])
                update = momentum
                if group["nesterov"]:
                    update = matrix.grad.lerp(momentum, group["momentum"])
                update = orthogonalised(
                    update, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                rate = group["lr"] * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-rate)
        return loss


def orthogonalised(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """A matrix with singular values near 1, by `steps` of a quintic Newton-Schulz iteration."""
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    wide = wide / wide.norm().clamp(min=eps)
    first, third, fifth = coefficients
    for _ in range(steps):
        gram = wide @ wide.T
        gram = torch.addmm(gram, gram, gram, beta=third, alpha=fifth)
        wide = torch.addmm(wide, gram, wide, beta=first)
    return wide.T if tall else wide

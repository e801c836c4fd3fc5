"""Muon's step in float32 against torch's own and against what it is meant to do."""

import pytest
import torch

from training.loop.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_steps_are_those_of_torch_up_to_bfloat16(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(shape, generator=generator)
    gradients = [torch.randn(shape, generator=generator) for _ in range(3)]
    ended = []
    kinds: tuple[type[torch.optim.Muon], ...] = (Muon, torch.optim.Muon)
    for kind in kinds:
        matrix = torch.nn.Parameter(start.clone())
        optimizer: torch.optim.Optimizer = kind([matrix], lr=0.05, weight_decay=0.1)
        for gradient in gradients:
            matrix.grad = gradient.clone()
            optimizer.step()
        ended.append(matrix.detach() - start)
    torch.testing.assert_close(ended[0], ended[1], atol=0.02 * ended[1].abs().max().item(), rtol=0)


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    before = torch.linalg.svdvals(matrix)
    after = torch.linalg.svdvals(orthogonalised(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7))
    assert (after - 1).abs().max() < 0.4 < (before - 1).abs().max()


def test_matrices_without_a_gradient_stay() -> None:
    matrix = torch.nn.Parameter(torch.ones(4, 4))
    optimizer: torch.optim.Optimizer = Muon([matrix], lr=0.1)
    optimizer.step()
    assert torch.equal(matrix, torch.ones(4, 4))

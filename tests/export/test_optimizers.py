"""Muon: what it makes of a gradient is orthogonal, and what torch's own makes of a matrix."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.recipes.optimizers import Muon, muon_and_adamw, orthogonalised  # noqa: E402


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = drawn(*shape)
    made = orthogonalised(matrix)
    values = torch.linalg.svdvals(made)
    assert 0.3 < values.min() <= values.max() < 1.3
    assert torch.linalg.svdvals(matrix).max() > 3
    assert (made * matrix).sum() > 0


def test_a_gradient_of_nothing_moves_nothing() -> None:
    assert torch.equal(orthogonalised(torch.zeros(4, 9)), torch.zeros(4, 9))


@pytest.mark.parametrize("shape", [(8, 72), (72, 8)])
def test_a_matrix_is_trained_as_by_torch(shape: tuple[int, int]) -> None:
    ours, theirs = nn.Parameter(drawn(*shape)), nn.Parameter(drawn(*shape))
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    optimizers = Muon([ours], **settings), torch.optim.Muon([theirs], **settings)
    for step in range(3):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = (step + 1) * drawn(*shape)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)  # torch's computes in bfloat16


def test_a_convolution_is_trained_as_the_matrix_of_its_rows_however_it_lies_in_memory() -> None:
    matrix, gradient = drawn(8, 36), drawn(8, 36).flip(0)
    weights = [
        nn.Parameter(matrix.clone()),
        nn.Parameter(matrix.clone().view(8, 4, 3, 3)),
        nn.Parameter(matrix.clone().view(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)),
    ]
    for weight in weights:
        weight.grad = gradient.view(weight.shape).clone(memory_format=torch.preserve_format)
    Muon(weights, lr=0.1, weight_decay=0.0, momentum=0.9).step()
    for weight in weights[1:]:
        torch.testing.assert_close(weight.reshape(8, 36), weights[0])


def test_the_last_layer_and_the_biases_are_adamws() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3))
    made = muon_and_adamw({"generator": network}, 1e-2, 1e-3, 0.0, last="generator.1")
    assert made["muon"][1] == ["generator.0.weight"]
    assert made["adamw"][1] == ["generator.0.bias", "generator.1.weight", "generator.1.bias"]

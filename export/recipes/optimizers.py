"""The optimizers of the recipes, with the names of what each trains.

Knows parameters; nothing of losses or data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Named = tuple[Optimizer, Sequence[str]]
"""An optimizer, and the names of its parameters in its order."""


def named_parameters(networks: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {f"{name}.{key}": p for name, network in networks.items() for key, p in network.named_parameters()}


def adam(networks: Mapping[str, nn.Module], learning_rate: float) -> dict[str, Named]:
    """Adam as generative networks use it: beta1 0.5 (Radford et al., arXiv 1511.06434)."""
    parameters = named_parameters(networks)
    return {"adam": (torch.optim.Adam(parameters.values(), lr=learning_rate, betas=(0.5, 0.999)), list(parameters))}


def rmsprop(networks: Mapping[str, nn.Module], learning_rate: float) -> dict[str, Named]:
    """RMSProp, as Wasserstein critics need it: momentum upsets them (Arjovsky et al., arXiv 1701.07875)."""
    parameters = named_parameters(networks)
    return {"rmsprop": (torch.optim.RMSprop(parameters.values(), lr=learning_rate, alpha=0.9), list(parameters))}


def muon_and_adamw(
    networks: Mapping[str, nn.Module], muon_rate: float, adamw_rate: float, weight_decay: float, *, last: str
) -> dict[str, Named]:
    """Muon for the convolutions; AdamW for biases and the layer named `last`.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) takes steps of equal size in all
    directions of a weight matrix; a convolution is one row an output channel. Small restoration networks
    learn markedly faster with it.
    """
    parameters = named_parameters(networks)
    weights = {key: p for key, p in parameters.items() if p.ndim == 4 and not key.startswith(f"{last}.")}
    others = {key: p for key, p in parameters.items() if key not in weights}
    matrices = [_matrix_of(weight) for weight in weights.values()]
    muon = torch.optim.Muon(matrices, lr=muon_rate, weight_decay=weight_decay, momentum=0.95)
    adamw = torch.optim.AdamW(others.values(), lr=adamw_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    return {"muon": (muon, list(weights)), "adamw": (adamw, list(others))}


def _matrix_of(weight: nn.Parameter) -> nn.Parameter:
    """A parameter that shares the memory of `weight`, and of its gradient whenever it has got one."""
    matrix = nn.Parameter(_as_matrix(weight.detach()))
    assert matrix.data_ptr() == weight.data_ptr(), "the matrix must be a view: the weight must be channels-last"

    def share_gradient(trained: Tensor) -> None:
        assert trained.grad is not None
        matrix.grad = _as_matrix(trained.grad)

    weight.register_post_accumulate_grad_hook(share_gradient)  # type: ignore[no-untyped-call]
    return matrix


def _as_matrix(weight: Tensor) -> Tensor:
    # In channels-last memory this order is a view.
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)

"""The optimizers of the recipes, with the names of what each trains.

Knows parameters; nothing of losses or data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
    muon = Muon(weights.values(), lr=muon_rate, weight_decay=weight_decay, momentum=0.95)
    adamw = torch.optim.AdamW(others.values(), lr=adamw_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    return {"muon": (muon, list(weights)), "adamw": (adamw, list(others))}


class Muon(Optimizer):
    """Muon for weights of any shape, one row an output channel; in float32, by way of the smaller Gram matrix.

    `torch.optim.Muon` takes matrices alone, and on a processor as long as the rest of a small network's step: it
    computes in bfloat16, which is slow without AMX, and multiplies the whole matrix twice in each of five iterations.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take a step down the gradients that the parameters have, with Nesterov's momentum."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                average = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
                # In whichever order the columns lie, they are made orthogonal alike.
                update = orthogonalised(gradient.lerp(average, group["momentum"]).flatten(1))
                rows, columns = update.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view(parameter.shape), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """`matrix` with all singular values near 1 (0.7 to 1.2), by five Newton-Schulz steps with Jordan's coefficients.

    Each step multiplies X by a polynomial of XX', so the products need XX' alone: X itself is touched twice.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / matrix.norm().clamp(min=1e-7)
    gram = x @ x.T
    product = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(5):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    made: Tensor = product @ x
    return made

"""Networks that descend a loss together: their optimizers, their precision, their state.

Knows gradients; nothing of what the loss means.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..checkpoint import below
from .optimizers import Named


def place(network: Any, device: torch.device) -> None:
    """Move a network, laid out as convolutions run fastest."""
    network.to(device, memory_format=torch.channels_last)


class Learner:
    """`networks`, prepared for the device, the precision and the number of processes, and what trains them.

    raw: the networks themselves. Only `learner[name]` may be called to learn from.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        networks: Mapping[str, nn.Module],
        optimizers: Callable[[Mapping[str, nn.Module]], Mapping[str, Named]],
        *,
        clip_norm: float = 0.0,
    ) -> None:
        self.raw = dict(networks)
        for network in self.raw.values():  # optimizers may look at the parameters as they lie in memory
            place(network, accelerator.device)
        self._accelerator, self._clip_norm, self._optimizers = accelerator, clip_norm, optimizers(networks)
        self._rates = {name: optimizer.param_groups[0]["lr"] for name, (optimizer, _) in self._optimizers.items()}
        with warnings.catch_warnings():  # of torch's new name for what accelerate still calls by the old one
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            self._prepared: dict[str, nn.Module] = {
                name: accelerator.prepare_model(network) for name, network in networks.items()
            }

    def __getitem__(self, name: str) -> nn.Module:
        """A network as it must be called in training."""
        return self._prepared[name]

    def descend(self, loss: Tensor, rate: float) -> None:
        """One step down the gradient of `loss`, at the share `rate` of the full learning rates."""
        for network in self.raw.values():
            network.zero_grad(set_to_none=True)
        self._accelerator.backward(loss)
        # Of fp16 only. Not by accelerate's optimizers: where there are two, they would undo the scale of one twice.
        scaler = self._accelerator.scaler
        if scaler is not None:
            for optimizer, _ in self._optimizers.values():
                scaler.unscale_(optimizer)
        if self._clip_norm:
            nn.utils.clip_grad_norm_(self._parameters(), self._clip_norm)
        for name, (optimizer, _) in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._rates[name] * rate
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()

    @contextmanager
    def frozen(self) -> Iterator[Mapping[str, nn.Module]]:
        """The networks, for gradients to pass through while they themselves stay as they are."""
        for parameter in self._parameters():
            parameter.requires_grad_(False)
        try:
            yield self.raw
        finally:
            for parameter in self._parameters():
                parameter.requires_grad_(True)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for network in self.raw.values() for parameter in network.parameters()]

    def state(self) -> dict[str, Tensor]:
        """All tensors of the networks and of the optimizers, by name."""
        tensors = {
            f"network.{name}.{key}": tensor
            for name, network in self.raw.items()
            for key, tensor in network.state_dict().items()
        }
        for name, (optimizer, parameters) in self._optimizers.items():
            state = optimizer.state_dict()["state"]
            for index, parameter in enumerate(parameters):
                own = state.get(index, {})
                tensors |= {f"moments.{name}.{parameter}.{moment}": tensor for moment, tensor in own.items()}
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. KeyError or RuntimeError if `tensors` are those of other networks."""
        for name, network in self.raw.items():
            network.load_state_dict(below(f"network.{name}.", tensors))
        for name, (optimizer, parameters) in self._optimizers.items():
            whole = optimizer.state_dict()
            for index, parameter in enumerate(parameters):
                own = below(f"moments.{name}.{parameter}.", tensors)
                if own:
                    whole["state"][index] = own
            optimizer.load_state_dict(whole)

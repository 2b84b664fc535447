"""Train a network on pairs that are made on the fly; stop and resume anywhere.

Knows the loop: schedule, optimizer, averaging, checkpoints. Blurs, pictures and networks are other modules.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, Self

import cv2
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from . import checkpoint
from .blur import MARGIN_PX, Degradation
from .data import PairDataset, PictureStore
from .errors import ExportError
from .networks.restore import RestoreNet, RestoreNetConfig
from .pictures import find_pictures, read_split, split_by_origin

log = logging.getLogger(__name__)


class TrainConfig(BaseModel):
    """Everything that decides what a run learns; written into each checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Literal["restore"] = "restore"
    network: RestoreNetConfig = RestoreNetConfig()
    blurs: dict[str, float] = Field(default_factory=lambda: dict(Degradation().weights))
    steps: int = Field(30_000, ge=1, le=1_000_000_000)
    batch: int = Field(16, ge=1, le=4096)
    patch: int = Field(128, ge=32, le=4096)
    learning_rate: float = Field(1e-3, gt=0)
    """Of AdamW, for biases and the last layer."""
    muon_rate: float = Field(1e-2, gt=0)
    """Of Muon, for all other convolutions."""
    warmup_steps: int = Field(300, ge=0)
    weight_decay: float = Field(1e-2, ge=0)
    clip_norm: float = Field(0.5, gt=0)
    average_decay: float = Field(0.999, ge=0, lt=1)
    spectral_weight: float = Field(0.05, ge=0)
    charbonnier_epsilon: float = Field(1e-3, gt=0)
    """Errors well below it (of 1) count by their square, those well above by their size."""
    seed: int = Field(0, ge=0, lt=1 << 32)

    @model_validator(mode="after")
    def _patches_fit_the_network(self) -> Self:
        if self.patch % self.network.stride:
            raise ValueError(
                f"'patch' must be a multiple of the network's stride {self.network.stride}, got {self.patch}"
            )
        return self


class RestoreLoss(nn.Module):
    """Charbonnier distance, plus the L1 distance of the spectra, which pulls at what blur removes.

    Weighted as in MIMO-UNet (Cho et al., arXiv 2108.05054): `spectral_weight` times a mean over the spectrum
    of an orthonormal transform.
    """

    def __init__(self, spectral_weight: float, epsilon: float = 1e-3) -> None:
        super().__init__()
        self.spectral_weight, self.epsilon = spectral_weight, epsilon

    def forward(self, restored: Tensor, sharp: Tensor) -> Tensor:
        difference = restored.float() - sharp
        loss = torch.sqrt(difference.square() + self.epsilon**2).mean()
        if self.spectral_weight:
            spectrum = torch.fft.rfft2(difference, norm="ortho")
            loss = loss + self.spectral_weight * torch.view_as_real(spectrum).abs().mean()
        return loss


def schedule(config: TrainConfig, step: int) -> float:
    """Share of the full learning rate: linear warm-up, then a cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cosine = 0.5 * (1 + np.cos(np.pi * min(1.0, step / config.steps)))
    return float(warm * (0.01 + 0.99 * cosine))


class Optimizers:
    """Muon for the convolutions, AdamW for biases and the last layer.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) takes steps of equal size in all
    directions of a weight matrix; a convolution is one row an output channel. Small restoration networks
    learn markedly faster with it.
    """

    def __init__(self, network: RestoreNet, config: TrainConfig) -> None:
        self._weights = {
            name: parameter
            for name, parameter in network.named_parameters()
            if parameter.ndim == 4 and not name.startswith("tail.")
        }
        self._matrices = {name: nn.Parameter(self._as_matrix(p.detach())) for name, p in self._weights.items()}
        for name, matrix in self._matrices.items():
            assert matrix.data_ptr() == self._weights[name].data_ptr(), "the matrix must be a view of the weight"
        self._others = {name: p for name, p in network.named_parameters() if name not in self._weights}
        self._rates = {"muon": config.muon_rate, "adamw": config.learning_rate}
        self._optimizers: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon(
                self._matrices.values(), lr=config.muon_rate, weight_decay=config.weight_decay, momentum=0.95
            ),
            "adamw": torch.optim.AdamW(
                self._others.values(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
            ),
        }

    @staticmethod
    def _as_matrix(weight: Tensor) -> Tensor:
        # In channels-last memory this order is a view.
        return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)

    def step(self, share: float) -> None:
        """Update from the parameters' gradients, at `share` of the full rates."""
        for name, matrix in self._matrices.items():
            gradient = self._weights[name].grad
            assert gradient is not None
            matrix.grad = self._as_matrix(gradient)
        for key, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._rates[key] * share
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Moments by `optimizer.parameter.moment`."""
        moments: dict[str, Tensor] = {}
        for key, names in (("muon", self._matrices), ("adamw", self._others)):
            state = self._optimizers[key].state_dict()["state"]
            for index, name in enumerate(names):
                moments |= {f"{key}.{name}.{moment}": value for moment, value in state.get(index, {}).items()}
        return moments

    def load(self, moments: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        for key, names in (("muon", self._matrices), ("adamw", self._others)):
            whole = self._optimizers[key].state_dict()
            for index, name in enumerate(names):
                prefix = f"{key}.{name}."
                own = {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}
                if own:
                    whole["state"][index] = own
            self._optimizers[key].load_state_dict(whole)


class Trainer:
    """A run: a network, its moving average and its optimizer, at some step."""

    def __init__(self, config: TrainConfig, device: str) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device, self.step = config, _usable(device), 0
        self.network = RestoreNet(config.network).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = deepcopy(self.network).requires_grad_(False)
        self.loss = RestoreLoss(config.spectral_weight, config.charbonnier_epsilon)
        self.optimizers = Optimizers(self.network, config)

    def learn(self, blurred: Tensor, sharp: Tensor) -> float:
        """One step on uint8 (N, H, W, 3) pictures; returns the loss."""
        x, y = (t.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255 for t in (blurred, sharp))
        # bfloat16 halves the step where the processor has it, and needs no loss scaling.
        with torch.autocast(self.device.type, torch.bfloat16):
            restored = self.network(x)
        loss: Tensor = self.loss(restored, y)
        self.network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizers.step(schedule(self.config, self.step))
        self.step += 1
        decay = min(self.config.average_decay, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)
        return loss.item()

    def save(self, run: Path, data: dict[str, Any]) -> Path:
        training = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        training |= {f"moments.{name}": tensor for name, tensor in self.optimizers.state().items()}
        info = {
            "recipe": self.config.recipe,
            "step": self.step,
            "config": self.config.model_dump(mode="json"),
            "data": data,
        }
        contiguous = {name: tensor.contiguous() for name, tensor in training.items()}
        return checkpoint.save(run, info, {k: v.contiguous() for k, v in self.average.state_dict().items()}, contiguous)

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Go on from `saved`, which must hold a network of the same shape."""
        training = saved.training()
        own = self.config.network.model_dump(mode="json")
        if saved.info["recipe"] != self.config.recipe or saved.info["config"].get("network") != own:
            raise ExportError(f"{saved.folder}: a checkpoint of another recipe or network; choose another --out")
        try:
            self.network.load_state_dict(
                {k.removeprefix("network."): v for k, v in training.items() if k.startswith("network.")}
            )
            self.average.load_state_dict(saved.weights())
            self.optimizers.load(
                {k.removeprefix("moments."): v for k, v in training.items() if k.startswith("moments.")}
            )
        except (KeyError, RuntimeError) as error:
            raise ExportError(f"{saved.folder}: the tensors do not fit the network it names") from error
        self.step = int(saved.info["step"])


def _usable(device: str) -> torch.device:
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch says a missing CUDA by an assertion
        reason = str(error).splitlines()[0]
        raise ExportError(f"device must be cpu, or cuda where there is one, got {device!r} ({reason})") from error
    return chosen


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the run's own decides
    cv2.setNumThreads(1)  # a loader process must not fight the training step for cores
    torch.set_num_threads(1)


def train(
    config: TrainConfig,
    data: list[Path],
    run: Path,
    *,
    device: str = "cpu",
    workers: int = 1,
    save_every_s: float = 120.0,
    stop: threading.Event | None = None,
) -> Iterator[tuple[int, float]]:
    """Train until `config.steps`, yielding (step, loss); goes on from the newest checkpoint of `run` if any.

    Saves and ends early when `stop` is set. Every origin that the development split names is left out. Raises
    ExportError for data that cannot serve.
    """
    pictures, held = split_by_origin(find_pictures(data), read_split())
    run.mkdir(parents=True, exist_ok=True)
    store, skipped = PictureStore.build(pictures, run / "pictures.u8", config.patch + 2 * MARGIN_PX)
    for line in skipped:
        log.warning("passed over %s", line)
    log.info("%d pictures to train on, %d held out", len(store), len(held))
    if len(store) < 1000:
        log.warning("fewer than 1000 pictures (%d): expect the network to learn them by heart", len(store))
    trainer = Trainer(config, device)
    if any(run.glob("checkpoint-*")):
        saved = checkpoint.find(run)
        trainer.resume(saved)
        log.info("resumed at step %d", trainer.step)
        changed = [
            key for key, value in config.model_dump(mode="json").items() if saved.info["config"].get(key) != value
        ]
        if changed:
            log.warning("from here on with other settings than before: %s", ", ".join(changed))
    pairs = PairDataset(
        store, Degradation(weights=config.blurs), config.patch, config.steps * config.batch, config.seed
    )
    rest = Subset(pairs, range(trainer.step * config.batch, len(pairs)))
    loader = DataLoader(
        rest,
        batch_size=config.batch,
        num_workers=workers,
        worker_init_fn=_start_worker,
        prefetch_factor=8 if workers else None,
    )
    facts = {"pictures": len(store), "held_out": len(held), "origins": sorted({p.parent.name for p in pictures})}
    saved_at = time.monotonic()
    for blurred, sharp in loader:
        if stop is not None and stop.is_set():
            if trainer.step:
                trainer.save(run, facts)
            return
        loss = trainer.learn(blurred, sharp)
        if not math.isfinite(loss):
            raise ExportError(f"the loss must stay finite, got {loss} at step {trainer.step}; try a lower rate")
        if time.monotonic() - saved_at > save_every_s or trainer.step == config.steps:
            trainer.save(run, facts)
            saved_at = time.monotonic()
        yield trainer.step, loss

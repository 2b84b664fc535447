"""A run at some step: a recipe being learnt, the average of its generator, and the device that it runs on.

Knows steps and states; nothing of folders or of when to save.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object
from torch import Tensor

from . import checkpoint
from .errors import ExportError
from .material import Pairs
from .metrics import psnr
from .networks.generator import FrameNet
from .recipes import RECIPES
from .recipes.config import TrainConfig
from .recipes.learner import place

SAMPLES = 8
"""Validation crops that are shown at each validation."""
PATIENCE = timedelta(hours=6)
"""How long other processes wait for the first: it decodes all pictures."""


class Trainer:
    """A run at some step: a recipe, and the moving average of its generator, which is what counts."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        torch.manual_seed(config.seed)
        recipe = RECIPES[config.recipe]
        self.config, self.accelerator, self.step = config, accelerator, 0
        self.recipe = recipe(config, accelerator)
        self.average = recipe.build(config.network)
        self.average.load_state_dict(self.recipe.generator.state_dict())
        place(self.average, accelerator.device)
        self.average.requires_grad_(False)
        self.average.eval()

    def learn(self, blurred: Tensor, sharp: Tensor) -> dict[str, float]:
        """One step on uint8 (N, H, W, 3) pictures; returns the losses by name."""
        # What is random in a step depends on its number alone, so a run that resumes repeats it.
        torch.manual_seed(hash((self.config.seed, self.step, self.accelerator.process_index)) & 0xFFFF_FFFF)
        device = self.accelerator.device
        x, y = (t.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255 for t in (blurred, sharp))
        losses = self.recipe.learn(x, y, self.step)
        self.step += 1
        self._follow(min(self.config.average_decay, self.step / (self.step + 10)))
        return {name: loss.item() for name, loss in losses.items()}

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        """Move the average towards the generator; running statistics of batch norm are averaged like weights."""
        for kind in ("parameters", "buffers"):
            pairs = zip(getattr(self.average, kind)(), getattr(self.recipe.generator, kind)(), strict=True)
            floating = [(mean, now) for mean, now in pairs if mean.is_floating_point()]
            if floating:
                means, news = zip(*floating, strict=True)
                torch._foreach_lerp_(list(means), list(news), 1 - decay)

    def validate(self, pairs: Pairs) -> tuple[float, list[np.ndarray[Any, Any]]]:
        """The mean PSNR in dB of the average on `pairs`, and the first of them: blurred, restored, sharp in a row."""
        frames = FrameNet(self.average)
        scores, samples = [], []
        for i in range(len(pairs)):  # type: ignore[arg-type]
            blurred, sharp = pairs[i]
            with torch.no_grad():
                restored = frames(blurred[None].to(self.accelerator.device))[0].cpu().numpy()
            scores.append(psnr(sharp.numpy(), restored))
            if i < SAMPLES:
                samples.append(np.hstack((blurred.numpy(), restored, sharp.numpy())))
        return float(np.mean(scores)), samples

    def info(self, data: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        config = self.config.model_dump(mode="json")
        return {"recipe": self.config.recipe, "step": self.step, "config": config, "data": data}

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights."""
        return _plain(self.average.state_dict())

    def state(self) -> dict[str, Tensor]:
        """Everything else that a run needs to go on; all processes must call it together."""
        own = {f"{pool}.{key}": t.cpu() for pool, p in self.recipe.pools.items() for key, t in p.state().items()}
        pools: list[dict[str, Tensor]] = gather_object([own]) if self.recipe.pools else []
        tensors = {f"pools.{rank}.{key}": t for rank, held in enumerate(pools) for key, t in held.items()}
        for name, learner in self.recipe.learners.items():
            tensors |= {f"{name}.{key}": tensor for key, tensor in learner.state().items()}
        if self.accelerator.scaler is not None:
            state = self.accelerator.scaler.state_dict()
            tensors |= {f"scaler.{name}": torch.tensor(value) for name, value in state.items()}
        return _plain(tensors)

    def resume(self, saved: checkpoint.Checkpoint) -> None:
        """Go on from `saved`, which must hold the same recipe with networks of the same shape."""
        own = self.config.model_dump(mode="json")
        if saved.info["recipe"] != self.config.recipe or saved.info["config"].get("network") != own["network"]:
            raise ExportError(f"{saved.folder}: a checkpoint of another recipe or network; choose another --out")
        tensors = saved.training()
        try:
            for name, learner in self.recipe.learners.items():
                learner.load(checkpoint.below(f"{name}.", tensors))
            for name, pool in self.recipe.pools.items():
                held = checkpoint.below(f"pools.{self.accelerator.process_index}.{name}.", tensors)
                pool.load({key: tensor.to(self.accelerator.device) for key, tensor in held.items()})
            self.average.load_state_dict(saved.weights())
        except (KeyError, RuntimeError, ValueError) as error:
            raise ExportError(f"{saved.folder}: the tensors do not fit the networks it names") from error
        if self.accelerator.scaler is not None:
            state = {name: value.item() for name, value in checkpoint.below("scaler.", tensors).items()}
            if state:
                self.accelerator.scaler.load_state_dict(state)
        self.step = int(saved.info["step"])


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def accelerator_for(config: TrainConfig, device: str) -> Accelerator:
    """What runs `config` on `device`: auto, cpu or cuda. ExportError where that cannot be."""
    if device not in ("auto", "cpu", "cuda"):
        raise ExportError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ExportError("device cuda needs an NVIDIA GPU and a torch built for CUDA; torch sees none here")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if _has_bf16(on_cpu=on_cpu) else "f32"
    if precision == "fp16" and on_cpu:
        raise ExportError("precision fp16 needs a GPU; a processor trains in bf16 or f32")
    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    return Accelerator(
        cpu=on_cpu,
        mixed_precision="no" if precision == "f32" else precision,
        # Each process keeps its own running statistics: sharing them in the middle of a step breaks gradients.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )


def _has_bf16(*, on_cpu: bool) -> bool:
    """Whether bfloat16 is fast here, not merely possible."""
    if on_cpu:  # where AVX-512 has it but AMX is missing, a step takes two to three times as long as in float32
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))

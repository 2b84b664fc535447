"""Settings that every recipe has; each recipe adds its own and chooses its defaults.

Knows names, values and their rules; nothing of how they are used.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..blur import MARGIN_PX
from ..data import Augment
from ..degradation import Degradation


class TrainConfig(BaseModel):
    """Everything that decides what a run learns; written into each checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    recipe: str
    network: Any
    """Size of the generator."""
    blur: Degradation = Degradation()
    steps: int = Field(default=30_000, ge=1, le=1_000_000_000)
    batch: int = Field(default=16, ge=1, le=4096)
    """Crops in a step, over all processes."""
    patch: int = Field(default=128, ge=32, le=4096)
    """Side of a crop in pixels."""
    margin_px: int = Field(MARGIN_PX, ge=0, le=512)
    """Pixels around a crop that its blur may look at; with 0 the border is mirrored."""
    augment: Augment = "all"
    keep_grey: bool = True
    learning_rate: float = Field(gt=0)
    schedule: Literal["cosine", "linear", "constant", "hold"] = "cosine"
    """After the warm-up: down to a hundredth; constant for one half, then straight down; constant; or `hold`: constant
    up to the last `decay_steps`, then straight down, so that a run may go on while it gains."""
    decay_steps: int = Field(default=5000, ge=1)
    """Of the schedule `hold`."""
    warmup_steps: int = Field(default=0, ge=0)
    clip_norm: float = Field(default=0, ge=0)
    """Greatest norm of all gradients of a network; 0 lets them be."""
    average_decay: float = Field(default=0.999, ge=0, lt=1)
    """Of the moving average of the generator's weights, which is what is validated and exported."""
    precision: Literal["auto", "f32", "bf16", "fp16"] = "auto"
    validate_every: int = Field(default=500, ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 32)

    @model_validator(mode="after")
    def _patches_fit_the_network(self) -> Self:
        if self.patch % self.network.stride:
            raise ValueError(
                f"'patch' must be a multiple of the network's stride {self.network.stride}, got {self.patch}"
            )
        return self

    def rate(self, step: int) -> float:
        """Share of the full learning rate at `step`."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        progress = min(1.0, step / self.steps)
        match self.schedule:
            case "cosine":
                falling = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
            case "linear":
                falling = min(1.0, 2 * (1 - progress))
            case "constant":
                falling = 1.0
            case "hold":
                falling = min(1.0, max(0.01, (self.steps - step) / self.decay_steps))
        return warm * falling

"""The recipe `restore`: a residual network, a robust pixel loss, Muon.

Knows one way to train; nothing of data, files or the loop.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from ..losses import RestoreLoss
from ..networks.restore import RestoreNet, RestoreNetConfig
from ..pool import PicturePool
from .config import TrainConfig
from .learner import Learner
from .optimizers import muon_and_adamw
from .recipe import Losses


class RestoreConfig(TrainConfig):
    """Settings of `restore`."""

    recipe: Literal["restore"] = "restore"
    network: RestoreNetConfig = RestoreNetConfig()
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW, for biases and the last layer."""
    muon_rate: float = Field(default=1e-2, gt=0)
    """Of Muon, for all other convolutions."""
    warmup_steps: int = Field(default=300, ge=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    clip_norm: float = Field(default=0.5, ge=0)
    spectral_weight: float = Field(default=0.05, ge=0)
    charbonnier_epsilon: float = Field(default=1e-3, gt=0)
    """Errors well below it (of 1) count by their square, those well above by their size."""


class Restore:
    """A residual U-Net that learns the correction of its input."""

    settings: ClassVar[type[TrainConfig]] = RestoreConfig
    paired: ClassVar[bool] = True

    def __init__(self, config: RestoreConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.generator = self.build(config.network)
        self.loss = RestoreLoss(config.spectral_weight, config.charbonnier_epsilon)
        optimizers = partial(
            muon_and_adamw,
            muon_rate=config.muon_rate,
            adamw_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            last="generator.tail",
        )
        self.translator = Learner(accelerator, {"generator": self.generator}, optimizers, clip_norm=config.clip_norm)
        self.learners = {"translator": self.translator}
        self.pools: dict[str, PicturePool] = {}

    @staticmethod
    def build(network: RestoreNetConfig) -> RestoreNet:
        return RestoreNet(network)

    def learn(self, blurred: Tensor, sharp: Tensor, step: int) -> Losses:
        loss = self.loss(self.translator["generator"](blurred), sharp)
        self.translator.descend(loss, self.config.rate(step))
        return {"loss": loss}

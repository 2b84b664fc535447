"""The recipe `dualgan`: two U-Nets, there and back, against Wasserstein critics; no pairs.

Knows one way to train; nothing of data, files or the loop. Yi et al., "DualGAN: unsupervised dual learning for
image-to-image translation", arXiv 1704.02510.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from ..losses import clip_weights, l1, wasserstein_critic, wasserstein_generator
from ..networks.patchgan import PatchDiscriminator, PatchDiscriminatorConfig
from ..networks.unet import UNet, UNetConfig
from ..pool import PicturePool
from .config import TrainConfig
from .learner import Learner
from .optimizers import rmsprop
from .recipe import Losses


class DualGanConfig(TrainConfig):
    """Settings of `dualgan`: the paper's, or where it gives a range, a value of the authors' code.

    Instance norm, because what they call batch norm takes the statistics of one picture.
    """

    recipe: Literal["dualgan"] = "dualgan"
    network: UNetConfig = UNetConfig(norm="instance")
    critic: PatchDiscriminatorConfig = PatchDiscriminatorConfig(norm="instance")
    patch: int = Field(default=256, ge=32, le=4096)
    batch: int = Field(default=1, ge=1, le=4096)
    learning_rate: float = Field(default=5e-5, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    reconstruction_weight: float = Field(default=500.0, ge=0)
    clip_weight: float = Field(default=0.01, gt=0)
    """Greatest size of a critic's weights."""
    critic_steps: int = Field(default=3, ge=1)
    """Steps of the critics for one of the translators."""


class DualGan:
    """Two U-Nets that must reconstruct what the other made, and two critics."""

    settings: ClassVar[type[TrainConfig]] = DualGanConfig
    paired: ClassVar[bool] = False

    def __init__(self, config: DualGanConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.generator = self.build(config.network)
        translators = {"to_sharp": self.generator, "to_blurred": self.build(config.network)}
        critics = {name: PatchDiscriminator(config.critic) for name in ("sharp", "blurred")}
        optimizer = partial(rmsprop, learning_rate=config.learning_rate)
        self.translators = Learner(accelerator, translators, optimizer, clip_norm=config.clip_norm)
        self.critics = Learner(accelerator, critics, optimizer, clip_norm=config.clip_norm)
        self.learners = {"translators": self.translators, "critics": self.critics}
        self.pools: dict[str, PicturePool] = {}

    @staticmethod
    def build(network: UNetConfig) -> UNet:
        return UNet(network)

    def learn(self, blurred: Tensor, sharp: Tensor, step: int) -> Losses:
        rate = self.config.rate(step)
        to_sharp, to_blurred = self.translators["to_sharp"], self.translators["to_blurred"]

        with torch.no_grad():
            restored, spoilt = to_sharp(blurred), to_blurred(sharp)
        judged = wasserstein_critic(self.critics["sharp"](sharp), self.critics["sharp"](restored))
        judged = judged + wasserstein_critic(self.critics["blurred"](blurred), self.critics["blurred"](spoilt))
        self.critics.descend(judged, rate)
        for critic in self.critics.raw.values():
            clip_weights(critic, self.config.clip_weight)
        if (step + 1) % self.config.critic_steps:
            return {"critic": judged}

        with self.critics.frozen() as frozen:
            restored, spoilt = to_sharp(blurred), to_blurred(sharp)
            fooled = wasserstein_generator(frozen["sharp"](restored)) + wasserstein_generator(frozen["blurred"](spoilt))
            reconstruction = l1(to_blurred(restored), blurred) + l1(to_sharp(spoilt), sharp)
            self.translators.descend(fooled + self.config.reconstruction_weight * reconstruction, rate)
        return {"loss": reconstruction, "critic": judged, "generator": fooled}

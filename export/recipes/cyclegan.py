"""The recipe `cyclegan`: two translators, there and back, that never see a pair.

Knows one way to train; nothing of data, files or the loop. Zhu et al., "Unpaired image-to-image translation
using cycle-consistent adversarial networks", arXiv 1703.10593.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from ..losses import l1, lsgan_discriminator, lsgan_generator
from ..networks.patchgan import PatchDiscriminator, PatchDiscriminatorConfig
from ..networks.resnet import ResNetConfig, ResNetGenerator
from ..pool import PicturePool
from .config import TrainConfig
from .learner import Learner
from .optimizers import adam
from .recipe import Losses


class CycleGanConfig(TrainConfig):
    """Settings of `cyclegan`."""

    recipe: Literal["cyclegan"] = "cyclegan"
    network: ResNetConfig = ResNetConfig()
    discriminator: PatchDiscriminatorConfig = PatchDiscriminatorConfig(norm="instance")
    patch: int = Field(default=256, ge=32, le=4096)
    batch: int = Field(default=1, ge=1, le=4096)
    learning_rate: float = Field(default=2e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    cycle_weight: float = Field(default=10.0, ge=0)
    identity_weight: float = Field(default=0.5, ge=0)
    """Share of the cycle's weight that a translator pays for changing what is sharp (or blurred) already."""
    pool: int = Field(default=50, ge=0)
    """Generated pictures that are kept to show the discriminators again."""


class CycleGan:
    """Blurred to sharp and sharp to blurred, each the check of the other."""

    settings: ClassVar[type[TrainConfig]] = CycleGanConfig
    paired: ClassVar[bool] = False

    def __init__(self, config: CycleGanConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.generator = self.build(config.network)
        translators = {"to_sharp": self.generator, "to_blurred": self.build(config.network)}
        judges = {name: PatchDiscriminator(config.discriminator) for name in ("sharp", "blurred")}
        optimizer = partial(adam, learning_rate=config.learning_rate)
        self.translators = Learner(accelerator, translators, optimizer, clip_norm=config.clip_norm)
        self.judges = Learner(accelerator, judges, optimizer, clip_norm=config.clip_norm)
        self.learners = {"translators": self.translators, "judges": self.judges}
        self.pools = {name: PicturePool(config.pool) for name in judges}

    @staticmethod
    def build(network: ResNetConfig) -> ResNetGenerator:
        return ResNetGenerator(network)

    def learn(self, blurred: Tensor, sharp: Tensor, step: int) -> Losses:
        rate, weight = self.config.rate(step), self.config.cycle_weight
        to_sharp, to_blurred = self.translators["to_sharp"], self.translators["to_blurred"]

        with self.judges.frozen() as frozen:
            restored, spoilt = to_sharp(blurred), to_blurred(sharp)
            fooled = lsgan_generator(frozen["sharp"](restored)) + lsgan_generator(frozen["blurred"](spoilt))
            cycle = l1(to_blurred(restored), blurred) + l1(to_sharp(spoilt), sharp)
            loss = fooled + weight * cycle
            if self.config.identity_weight:
                identity = l1(to_sharp(sharp), sharp) + l1(to_blurred(blurred), blurred)
                loss = loss + weight * self.config.identity_weight * identity
            self.translators.descend(loss, rate)

        judged = sum(
            (
                lsgan_discriminator(
                    self.judges[name](real),
                    self.judges[name](self.pools[name].exchange(fake, torch.default_generator)),
                )
                for name, real, fake in (("sharp", sharp, restored), ("blurred", blurred, spoilt))
            ),
            torch.zeros((), device=blurred.device),
        )
        self.judges.descend(judged, rate)
        return {"loss": cycle, "discriminator": judged, "generator": fooled}

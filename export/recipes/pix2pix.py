"""The recipe `pix2pix`: a U-Net, judged by a discriminator that sees the blurred picture beside the sharp one.

Knows one way to train; nothing of data, files or the loop. Isola et al., "Image-to-image translation with
conditional adversarial networks", arXiv 1611.07004.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from ..losses import cgan_discriminator, cgan_generator, l1
from ..networks.patchgan import PatchDiscriminator, PatchDiscriminatorConfig
from ..networks.unet import UNet, UNetConfig
from ..pool import PicturePool
from .config import TrainConfig
from .learner import Learner
from .optimizers import adam
from .recipe import Losses


class Pix2PixConfig(TrainConfig):
    """Settings of `pix2pix`."""

    recipe: Literal["pix2pix"] = "pix2pix"
    network: UNetConfig = UNetConfig()
    discriminator: PatchDiscriminatorConfig = PatchDiscriminatorConfig()
    patch: int = Field(default=256, ge=32, le=4096)
    batch: int = Field(default=1, ge=1, le=4096)
    learning_rate: float = Field(default=2e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    l1_weight: float = Field(default=100.0, ge=0)


class Pix2Pix:
    """A U-Net against a conditional PatchGAN."""

    settings: ClassVar[type[TrainConfig]] = Pix2PixConfig
    paired: ClassVar[bool] = True

    def __init__(self, config: Pix2PixConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.generator = self.build(config.network)
        judge = PatchDiscriminator(config.discriminator, channels_in=6)
        optimizer = partial(adam, learning_rate=config.learning_rate)
        self.translator = Learner(accelerator, {"generator": self.generator}, optimizer, clip_norm=config.clip_norm)
        self.judge = Learner(accelerator, {"pair": judge}, optimizer, clip_norm=config.clip_norm)
        self.learners = {"translator": self.translator, "judge": self.judge}
        self.pools: dict[str, PicturePool] = {}

    @staticmethod
    def build(network: UNetConfig) -> UNet:
        return UNet(network)

    def learn(self, blurred: Tensor, sharp: Tensor, step: int) -> Losses:
        rate = self.config.rate(step)
        restored = self.translator["generator"](blurred)

        judge = self.judge["pair"]
        real, fake = judge(torch.cat((blurred, sharp), 1)), judge(torch.cat((blurred, restored.detach()), 1))
        judged = cgan_discriminator(real, fake)
        self.judge.descend(judged, rate)

        with self.judge.frozen() as frozen:
            fooled = cgan_generator(frozen["pair"](torch.cat((blurred, restored), 1)))
            distance = l1(restored, sharp)
            self.translator.descend(fooled + self.config.l1_weight * distance, rate)
        return {"loss": distance, "discriminator": judged, "generator": fooled}

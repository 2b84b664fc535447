"""The recipe `img2img`: DCGAN's two networks back to back, and the squared error.

Knows one way to train; nothing of data, files or the loop. It is the experiment that this project began with.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from ..data import Augment
from ..degradation import ARTICLE, Degradation
from ..losses import l2
from ..networks.img2img import Img2ImgConfig, Img2ImgNet
from ..pool import PicturePool
from .config import TrainConfig
from .learner import Learner
from .optimizers import adam
from .recipe import Losses


class Img2ImgTrainConfig(TrainConfig):
    """Settings of `img2img`."""

    recipe: Literal["img2img"] = "img2img"
    network: Img2ImgConfig = Img2ImgConfig()
    blur: Degradation = ARTICLE
    steps: int = Field(default=4_000, ge=1, le=1_000_000_000)
    batch: int = Field(default=64, ge=1, le=4096)
    patch: int = Field(default=64, ge=32, le=4096)
    margin_px: int = Field(default=0, ge=0, le=512)
    augment: Augment = "zoom"
    keep_grey: bool = False
    learning_rate: float = Field(default=2e-4, gt=0)
    average_decay: float = Field(default=0.998, ge=0, lt=1)
    validate_every: int = Field(default=100, ge=1)


class Img2Img:
    """An encoder-decoder that draws the sharp picture anew from what its bottleneck holds."""

    settings: ClassVar[type[TrainConfig]] = Img2ImgTrainConfig
    paired: ClassVar[bool] = True

    def __init__(self, config: Img2ImgTrainConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.generator = self.build(config.network)
        self.translator = Learner(
            accelerator,
            {"generator": self.generator},
            lambda networks: adam(networks, config.learning_rate),
            clip_norm=config.clip_norm,
        )
        self.learners = {"translator": self.translator}
        self.pools: dict[str, PicturePool] = {}

    @staticmethod
    def build(network: Img2ImgConfig) -> Img2ImgNet:
        return Img2ImgNet(network)

    def learn(self, blurred: Tensor, sharp: Tensor, step: int) -> Losses:
        loss = l2(self.translator["generator"](blurred), sharp)
        self.translator.descend(loss, self.config.rate(step))
        return {"loss": loss}

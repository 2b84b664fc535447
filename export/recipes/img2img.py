"""The recipe `img2img`: DCGAN's two networks back to back, and the squared error.

Knows one way to train; nothing of data, files or the loop. It is the experiment that this project began with.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal, Self

from accelerate import Accelerator
from pydantic import Field, model_validator
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

    @model_validator(mode="after")
    def _batch_norm_has_something_to_compare(self) -> Self:
        if self.batch == 1 and self.patch == self.network.stride:
            raise ValueError(f"'batch' must be at least 2 where 'patch' is the network's stride {self.patch}, got 1")
        return self


class Img2Img:
    """An encoder-decoder that draws the sharp picture anew from what its bottleneck holds."""

    settings: ClassVar[type[TrainConfig]] = Img2ImgTrainConfig
    paired: ClassVar[bool] = True

    def __init__(self, config: Img2ImgTrainConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.generator = self.build(config.network)
        optimizer = partial(adam, learning_rate=config.learning_rate)
        self.translator = Learner(accelerator, {"generator": self.generator}, optimizer, clip_norm=config.clip_norm)
        self.learners = {"translator": self.translator}
        self.pools: dict[str, PicturePool] = {}

    @staticmethod
    def build(network: Img2ImgConfig) -> Img2ImgNet:
        return Img2ImgNet(network)

    def learn(self, blurred: Tensor, sharp: Tensor, step: int) -> Losses:
        loss = l2(self.translator["generator"](blurred), sharp)
        self.translator.descend(loss, self.config.rate(step))
        return {"loss": loss}

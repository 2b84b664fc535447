"""What a recipe is: the networks that are trained together, and what a step does to them.

Knows no data, no files and no loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from accelerate import Accelerator
from torch import Tensor

from ..networks.generator import Generator
from ..pool import PicturePool
from .config import TrainConfig
from .learner import Learner

Losses = dict[str, Tensor]
"""What a step measured, by name; `loss` is the one to watch."""


class Recipe(Protocol):
    """A way to train an image translator.

    settings: the class of its configuration.
    paired: whether a blurred picture and its sharp one come together; else the two are of different scenes.
    generator: the network that turns blurred into sharp, as it is trained.
    learners: all that is trained, by name.
    pools: generated pictures that are kept between steps; every process has its own.
    """

    settings: ClassVar[type[TrainConfig]]
    paired: ClassVar[bool]

    @property
    def generator(self) -> Generator: ...

    @property
    def learners(self) -> Mapping[str, Learner]: ...

    @property
    def pools(self) -> Mapping[str, PicturePool]: ...

    def __init__(self, config: Any, accelerator: Accelerator) -> None: ...

    @staticmethod
    def build(network: Any) -> Generator:
        """A generator of the size that `network`, the part of the configuration, says."""

    def learn(self, blurred: Tensor, sharp: Tensor, step: int) -> Losses:
        """The step after `step` others, on float (N, 3, H, W) pictures, 0 to 1."""

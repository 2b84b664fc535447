"""What every image translator has in common, and how engines see it.

Knows tensors only; nothing of data, losses or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Generator(Protocol):
    """A network that turns blurred pictures into sharp ones; also an `nn.Module`.

    stride: height and width must be multiples of this.
    whole_frame: whether a pixel depends on the whole frame (through instance norm); then tiles would differ.
    """

    @property
    def stride(self) -> int: ...

    whole_frame: bool

    def __call__(self, blurred: Tensor) -> Tensor:
        """(N, 3, H, W) RGB, 0 to 1, to the same."""

    def restore_levels(self, levels: Tensor) -> Tensor:
        """The same in levels, 0 to 255, as a frame holds them; may go a little beyond."""

    def fold(self) -> None:
        """Merge what only helps training into the layers that stay; computes the same, with less work."""

    def eval(self) -> Any: ...

    def requires_grad_(self, requires_grad: bool) -> Any: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def buffers(self) -> Iterator[Tensor]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any: ...


class FrameNet(nn.Module):
    """A generator as the engine sees it: uint8 (N, H, W, 3) RGB frames in and out, normalisation inside.

    Casts stand where TensorRT accepts them: it refuses every layer on uint8 but `Cast`.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, frames: Tensor) -> Tensor:
        restored = self.generator.restore_levels(frames.float().permute(0, 3, 1, 2))
        return torch.round(restored.clamp(0, 255)).permute(0, 2, 3, 1).to(torch.uint8)

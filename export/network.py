"""The `restore` network: a small residual U-Net of plain 3x3 convolutions at reduced resolution.

Knows tensors only; nothing of data, losses or files.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F


class RestoreNetConfig(BaseModel):
    """Size of a `RestoreNet`. `widths` and `blocks` go from the finest level to the deepest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unshuffle: int = Field(4, ge=1, le=8)
    widths: tuple[int, ...] = Field((32, 64, 128), min_length=2)
    blocks: tuple[int, ...] = Field((1, 1, 2), min_length=2)

    @property
    def stride(self) -> int:
        """Frame height and width must be multiples of this."""
        return int(self.unshuffle * 2 ** (len(self.widths) - 1))


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))  # type: ignore[no-any-return]


class RestoreNet(nn.Module):
    """Blurred RGB in, restored RGB out; float, (N, 3, H, W), 0 to 1; H and W multiples of `config.stride`.

    Pixel-unshuffle in, pixel-shuffle out (Shi et al., arXiv 1609.05158): all work happens at a quarter of the
    resolution or less, in plain 3x3 convolutions, which every back-end runs near its peak. The network learns
    a correction that is added to its input, and starts as the identity.
    """

    def __init__(self, config: RestoreNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or RestoreNetConfig()
        widths, blocks, factor = self.config.widths, self.config.blocks, self.config.unshuffle
        channels = 3 * factor**2
        self.head = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in zip(widths, widths[1:], strict=False)
        )
        # The finest level is the dearest: it works once, on the way up.
        self.encode = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(count)))
            for width, count in zip(widths[1:], blocks[1:], strict=True)
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(coarse, fine * 4, 1), nn.PixelShuffle(2))
            for fine, coarse in zip(widths, widths[1:], strict=False)
        )
        self.decode = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(count)))
            for width, count in zip(widths[:-1], blocks[:-1], strict=True)
        )
        self.tail = nn.Conv2d(widths[0], channels, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    def forward(self, blurred: Tensor) -> Tensor:
        x = F.relu(self.head(F.pixel_unshuffle(blurred, self.config.unshuffle)))
        skips: list[Tensor] = []
        for down, encode in zip(self.down, self.encode, strict=True):
            skips.append(x)
            x = encode(F.relu(down(x)))
        for up, decode, skip in zip(reversed(self.up), reversed(self.decode), reversed(skips), strict=True):
            x = decode(F.relu(up(x) + skip))
        return blurred + F.pixel_shuffle(self.tail(x), self.config.unshuffle)


class FrameNet(nn.Module):
    """A network as the engine sees it: uint8 (N, H, W, 3) RGB frames in and out, normalisation inside.

    Casts stand where TensorRT accepts them: it refuses every layer on uint8 but `Cast`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        blurred = frames.float().permute(0, 3, 1, 2) * (1 / 255)
        restored = self.network(blurred).clamp(0, 1) * 255
        return torch.round(restored).permute(0, 2, 3, 1).to(torch.uint8)

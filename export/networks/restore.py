"""The `restore` network: a small residual U-Net of plain 3x3 convolutions at reduced resolution.

Knows tensors only; nothing of data, losses or files.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F


class RestoreNetConfig(BaseModel):
    """Size of a `RestoreNet`. `widths` and `blocks` go from the finest level to the deepest.

    blocks: residual blocks of each level on the way up, and at the bottom.
    blocks_down: those of the levels between the finest and the deepest on the way down; None: as many as on the way up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unshuffle: int = Field(default=4, ge=1, le=8)
    widths: tuple[PositiveInt, ...] = Field(default=(32, 64, 128), min_length=2)
    blocks: tuple[NonNegativeInt, ...] = Field(default=(1, 1, 2), min_length=2)
    blocks_down: tuple[NonNegativeInt, ...] | None = None

    @model_validator(mode="after")
    def _one_count_a_level(self) -> Self:
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"blocks must be one per width ({len(self.widths)}), got {len(self.blocks)}")
        if self.blocks_down is not None and len(self.blocks_down) != len(self.widths) - 2:
            raise ValueError(
                f"blocks_down must be one per level between the finest and the deepest ({len(self.widths) - 2}),"
                f" got {len(self.blocks_down)}"
            )
        return self

    @property
    def blocks_to_the_bottom(self) -> tuple[int, ...]:
        """Of every level but the finest, on the way down."""
        between = self.blocks[1:-1] if self.blocks_down is None else self.blocks_down
        return (*between, self.blocks[-1])

    @property
    def stride(self) -> int:
        """Frame height and width must be multiples of this."""
        return int(self.unshuffle * 2 ** (len(self.widths) - 1))


class Whitening(nn.Module):
    """Turns unshuffled pixels into uncorrelated channels of about unit variance, by a fixed 1x1 convolution.

    The 48 neighbours that a pixel-unshuffle stacks are nearly equal, which makes the first layer learn slowly.
    Their DCT in opponent colours is nearly uncorrelated, and natural pictures say how strong each coefficient
    is: falling with the square of the frequency. As the transform is linear, `fold_into` leaves it out later.
    """

    CONTRAST = (1.5, 0.45, 0.25)  # standard deviations of the mean coefficient: luma, red-blue, green-magenta
    FLOOR = 0.01  # what noise and rounding leave in the faintest coefficients; bounds the gain

    weight: Tensor

    def __init__(self, factor: int) -> None:
        super().__init__()
        k = torch.arange(factor, dtype=torch.float64)
        dct = torch.cos(torch.pi * (k + 0.5) * k[:, None] / factor) * (2 / factor) ** 0.5
        dct[0] /= 2**0.5
        opponent = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
        opponent /= opponent.norm(dim=1, keepdim=True)
        basis = torch.einsum("ac,uy,vx->auvcyx", opponent, dct, dct)
        power = (k[:, None] ** 2 + k**2) / (factor / 4) ** 2
        falling = torch.where(power > 0, 0.1 / power.clamp(min=1e-9), 1.0)
        deviation = torch.tensor(self.CONTRAST, dtype=torch.float64)[:, None, None] * falling
        channels = 3 * factor**2
        whitened = basis.reshape(channels, channels) / (deviation.reshape(channels, 1) + self.FLOOR)
        self.register_buffer("weight", whitened.float()[:, :, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # the gain is 100 and more: bfloat16 is too coarse
            return F.conv2d(x.float(), self.weight)

    def fold_into(self, following: nn.Conv2d) -> None:
        """Make `following` take plain unshuffled pixels."""
        with torch.no_grad():
            following.weight.copy_(torch.einsum("okyx,kc->ocyx", following.weight, self.weight[:, :, 0, 0]))


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight *= 0.1  # blocks start near the identity

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))  # type: ignore[no-any-return]


class RestoreNet(nn.Module):
    """Blurred RGB in, restored RGB out; float, (N, 3, H, W), 0 to 1; H and W multiples of `config.stride`.

    Pixel-unshuffle in, pixel-shuffle out (Shi et al., arXiv 1609.05158): all work happens at a quarter of the
    resolution or less, in plain 3x3 convolutions, which every back-end runs near its peak. The network learns
    a correction that is added to its input, and starts as the identity.
    """

    whole_frame = False

    def __init__(self, config: RestoreNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or RestoreNetConfig()
        widths, blocks, factor = self.config.widths, self.config.blocks, self.config.unshuffle
        channels = 3 * factor**2
        self.whitening: nn.Module = Whitening(factor)
        self.head = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths))
        # The finest level is the dearest: it works once, on the way up.
        self.encode = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(count)))
            for width, count in zip(widths[1:], self.config.blocks_to_the_bottom, strict=True)
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(coarse, fine * 4, 1), nn.PixelShuffle(2)) for fine, coarse in pairwise(widths)
        )
        self.decode = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(count)))
            for width, count in zip(widths[:-1], blocks[:-1], strict=True)
        )
        self.tail = nn.Conv2d(widths[0], channels, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]

    @property
    def stride(self) -> int:
        return self.config.stride

    def forward(self, blurred: Tensor) -> Tensor:
        return blurred + self.correction(blurred)

    def restore_levels(self, levels: Tensor) -> Tensor:
        # The sum is taken in levels: whole numbers up to 255 are exact in bfloat16, their 255ths are not.
        return levels + self.correction(levels * (1 / 255)) * 255

    def correction(self, blurred: Tensor) -> Tensor:
        """What must be added to `blurred`; same shape and scale."""
        x = F.relu(self.head(self.whitening(F.pixel_unshuffle(blurred - 0.5, self.config.unshuffle))))
        skips: list[Tensor] = []
        for down, encode in zip(self.down, self.encode, strict=True):
            skips.append(x)
            x = encode(F.relu(down(x)))
        for up, decode, skip in zip(reversed(self.up), reversed(self.decode), reversed(skips), strict=True):
            x = decode(F.relu(up(x) + skip))
        return F.pixel_shuffle(self.tail(x), self.config.unshuffle)

    def fold(self) -> None:
        """Merge what only helps training into the layers that stay; computes the same, with less work."""
        if isinstance(self.whitening, Whitening):
            self.whitening.fold_into(self.head)
            self.whitening = nn.Identity()

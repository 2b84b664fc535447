"""The `unet` network: pix2pix's U-Net, which halves the resolution down to a single pixel, and back with skips.

Knows tensors only; nothing of data, losses or files.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .layers import Norm, draw_weights, fold_batch_norms, from_tanh_range, norm_layer, to_tanh_range


class UNetConfig(BaseModel):
    """Size of a `UNet`: channels of its first layer, how often it halves the resolution, its norm and dropout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(default=64, ge=1, le=4096)
    downs: int = Field(default=8, ge=3, le=10)
    norm: Norm = "batch"
    dropout: float = Field(default=0.5, ge=0, lt=1)

    @property
    def stride(self) -> int:
        """Frame height and width must be multiples of this."""
        return int(2**self.downs)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the encoder's layers: doubled three times, then kept."""
        return tuple(self.width * 2 ** min(i, 3) for i in range(self.downs))


class UNet(nn.Module):
    """Blurred RGB in, restored RGB out; float, (N, 3, H, W), 0 to 1; H and W multiples of `config.stride`.

    The generator of pix2pix (Isola et al., arXiv 1611.07004, appendix 6.1.1), all 4x4 convolutions of stride 2:
    C64-C128-C256-C512-C512-C512-C512-C512 down, CD512-CD512-CD512-C512-C256-C128-C64 up, each step up beside
    the features of the step down at its resolution. DualGAN's generator (Yi et al., arXiv 1704.02510, section
    3.2) has the same shape. In eval mode nothing is random and batch norm keeps to what it learned, where the
    paper leaves dropout on and takes the statistics of each picture: a stream must not flicker.
    """

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or UNetConfig()
        self.whole_frame = self.config.norm == "instance"
        widths, innermost, norm = self.config.widths, self.config.downs - 1, self.config.norm
        self.down = nn.ModuleList()
        for i, (narrow, wide) in enumerate(pairwise((3, *widths))):
            # No norm on the innermost layer: of a single pixel it would leave nothing (the paper's errata).
            normed = 0 < i < innermost
            step: list[nn.Module] = [] if i == 0 else [nn.LeakyReLU(0.2)]
            step.append(nn.Conv2d(narrow, wide, 4, stride=2, padding=1, bias=not normed))
            self.down.append(nn.Sequential(*step, *([norm_layer(norm, wide)] if normed else [])))
        self.up = nn.ModuleList()
        for i, (wide, narrow) in enumerate(pairwise(widths[::-1])):
            joined = wide if i == 0 else 2 * wide
            step = [nn.ReLU(), nn.ConvTranspose2d(joined, narrow, 4, stride=2, padding=1, bias=False)]
            step.append(norm_layer(norm, narrow))
            if i < 3 and self.config.dropout:
                step.append(nn.Dropout(self.config.dropout))
            self.up.append(nn.Sequential(*step))
        self.last = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * widths[0], 3, 4, stride=2, padding=1), nn.Tanh())
        draw_weights(self)

    @property
    def stride(self) -> int:
        return self.config.stride

    def forward(self, blurred: Tensor) -> Tensor:
        x = self.down[0](to_tanh_range(blurred))
        skips: list[Tensor] = []
        for down in self.down[1:]:
            skips.append(x)
            x = down(x)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = torch.cat([up(x), skip], dim=1)
        return from_tanh_range(self.last(x))

    def restore_levels(self, levels: Tensor) -> Tensor:
        restored: Tensor = self(levels / 255)
        return restored * 255

    def fold(self) -> None:
        """Merge the batch norms into the convolutions, as they are in eval mode."""
        fold_batch_norms(self)

"""The PatchGAN discriminator: says of each patch of a picture whether it looks real.

Knows tensors only; nothing of losses, and not which of its inputs are real.
"""

from __future__ import annotations

from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .layers import Norm, draw_weights, norm_layer, to_tanh_range


class PatchDiscriminatorConfig(BaseModel):
    """Size of a `PatchDiscriminator`: channels of its first layer, and its norm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(default=64, ge=1, le=4096)
    norm: Norm = "batch"


class PatchDiscriminator(nn.Module):
    """Float pictures in, (N, channels_in, H, W), 0 to 1; logits out, (N, 1, H/8 - 2, W/8 - 2), one a patch.

    The 70x70 discriminator of pix2pix (Isola et al., arXiv 1611.07004, appendix 6.1.2) and CycleGAN (Zhu et
    al., arXiv 1703.10593, appendix 7.2): C64-C128-C256-C512 and one layer down to a single channel, 4x4
    convolutions of stride 2, 2, 2, 1 and 1, leaky ReLU, no norm on the first and last. A logit's receptive
    field is 1 + 3 (1 + 2 + 4 + 8 + 8) = 70 pixels a side; crops may be smaller, down to 24 pixels.
    There is no sigmoid: the losses take logits.

    channels_in: 3 for one picture; 6 for a picture beside the one it was made from, as in pix2pix.
    """

    def __init__(self, config: PatchDiscriminatorConfig | None = None, *, channels_in: int = 3) -> None:
        super().__init__()
        self.config = config or PatchDiscriminatorConfig()
        width, norm = self.config.width, self.config.norm
        widths = (width, 2 * width, 4 * width, 8 * width)
        layers = [nn.Conv2d(channels_in, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for (narrow, wide), stride in zip(pairwise(widths), (2, 2, 1), strict=True):
            convolution = nn.Conv2d(narrow, wide, 4, stride=stride, padding=1, bias=False)
            layers += [convolution, norm_layer(norm, wide), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        draw_weights(self)

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.layers(to_tanh_range(pictures))
        return logits

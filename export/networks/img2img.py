"""The `img2img` network: DCGAN's discriminator as the encoder, DCGAN's generator as the decoder.

Knows tensors only; nothing of data, losses or files.
"""

from __future__ import annotations

from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn

from .layers import draw_weights, fold_batch_norms, from_tanh_range, to_tanh_range


class Img2ImgConfig(BaseModel):
    """Size of an `Img2ImgNet`: channels of the encoder, each at half the resolution of the one before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    widths: tuple[PositiveInt, ...] = Field(default=(64, 128, 256, 512), min_length=1, max_length=8)

    @property
    def stride(self) -> int:
        """Frame height and width must be multiples of this."""
        return int(2 ** len(self.widths))


def _encoder_step(narrow: int, wide: int, *, first: bool) -> list[nn.Module]:
    # A bias before a batch norm would be subtracted again.
    convolution = nn.Conv2d(narrow, wide, 5, stride=2, padding=2, bias=first)
    return [convolution, *([] if first else [nn.BatchNorm2d(wide)]), nn.LeakyReLU(0.2)]


def _decoder_step(wide: int, narrow: int, *, last: bool) -> list[nn.Module]:
    convolution = nn.ConvTranspose2d(wide, narrow, 5, stride=2, padding=2, output_padding=1, bias=last)
    return [convolution, *([nn.Tanh()] if last else [nn.BatchNorm2d(narrow), nn.ReLU()])]


class Img2ImgNet(nn.Module):
    """Blurred RGB in, restored RGB out; float, (N, 3, H, W), 0 to 1; H and W multiples of `config.stride`.

    The two networks of DCGAN (Radford et al., arXiv 1511.06434) back to back, 5x5 convolutions of stride 2
    throughout: its discriminator without the last linear layer, then its generator without the first. What
    the first leaves of a picture is a map of 512 channels at a sixteenth of the resolution; there is no fully
    connected layer, so that any size fits, and no skip: all detail passes the bottleneck.
    """

    whole_frame = False

    def __init__(self, config: Img2ImgConfig | None = None) -> None:
        super().__init__()
        self.config = config or Img2ImgConfig()
        up = (3, *self.config.widths)
        down = up[::-1]
        self.encoder = nn.Sequential(
            *(layer for i, (a, b) in enumerate(pairwise(up)) for layer in _encoder_step(a, b, first=i == 0))
        )
        self.decoder = nn.Sequential(
            *(layer for i, (a, b) in enumerate(pairwise(down), 2) for layer in _decoder_step(a, b, last=i == len(down)))
        )
        draw_weights(self)

    @property
    def stride(self) -> int:
        return self.config.stride

    def forward(self, blurred: Tensor) -> Tensor:
        return from_tanh_range(self.decoder(self.encoder(to_tanh_range(blurred))))

    def restore_levels(self, levels: Tensor) -> Tensor:
        restored: Tensor = self(levels / 255)
        return restored * 255

    def fold(self) -> None:
        """Merge the batch norms into the convolutions, as they are in eval mode."""
        fold_batch_norms(self)

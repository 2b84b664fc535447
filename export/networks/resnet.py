"""The `resnet` network: CycleGAN's generator, residual blocks at a quarter of the resolution.

Knows tensors only; nothing of data, losses or files.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .layers import draw_weights, from_tanh_range, norm_layer, to_tanh_range


class ResNetConfig(BaseModel):
    """Size of a `ResNetGenerator`: channels of its first layer, and how many residual blocks.

    The paper takes 9 blocks for pictures of 256 x 256 and more, 6 for 128 x 128.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(default=64, ge=1, le=4096)
    blocks: int = Field(default=9, ge=1, le=100)

    @property
    def stride(self) -> int:
        """Frame height and width must be multiples of this."""
        # Two halvings ask for 4 only; but 4 pixels would leave one, which neither mirrors nor has a deviation.
        return 8


def _convolution(narrow: int, wide: int, kernel: int, *, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias, which the instance norm behind it would subtract again."""
    if stride == 1:
        padded = nn.Conv2d(narrow, wide, kernel, padding=kernel // 2, padding_mode="reflect", bias=False)
    else:
        padded = nn.Conv2d(narrow, wide, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [padded, norm_layer("instance", wide)]


def _step_up(wide: int, narrow: int) -> list[nn.Module]:
    convolution = nn.ConvTranspose2d(wide, narrow, 3, stride=2, padding=1, output_padding=1, bias=False)
    return [convolution, norm_layer("instance", narrow), nn.ReLU()]


class MirroredBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), with mirrored borders and no activation after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_convolution(width, width, 3), nn.ReLU(), *_convolution(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)  # type: ignore[no-any-return]


class ResNetGenerator(nn.Module):
    """Blurred RGB in, restored RGB out; float, (N, 3, H, W), 0 to 1; H and W multiples of `config.stride`.

    The generator of CycleGAN (Zhu et al., arXiv 1703.10593, appendix 7.2), after Johnson et al. (arXiv
    1603.08155): c7s1-64, d128, d256, R256 as often as `blocks` says, u128, u64, c7s1-3, with instance norm and
    ReLU but after the last. The 7x7 layers and the blocks mirror their borders, the steps down and up pad
    with zeros, as in the authors' code. Smallest frame: 8 x 8.
    """

    whole_frame = True

    def __init__(self, config: ResNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or ResNetConfig()
        width = self.config.width
        self.encoder = nn.Sequential(
            *(*_convolution(3, width, 7), nn.ReLU()),
            *(*_convolution(width, 2 * width, 3, stride=2), nn.ReLU()),
            *(*_convolution(2 * width, 4 * width, 3, stride=2), nn.ReLU()),
        )
        self.blocks = nn.Sequential(*(MirroredBlock(4 * width) for _ in range(self.config.blocks)))
        self.decoder = nn.Sequential(
            *_step_up(4 * width, 2 * width),
            *_step_up(2 * width, width),
            nn.Conv2d(width, 3, 7, padding=3, padding_mode="reflect"),
            nn.Tanh(),
        )
        draw_weights(self)

    @property
    def stride(self) -> int:
        return self.config.stride

    def forward(self, blurred: Tensor) -> Tensor:
        return from_tanh_range(self.decoder(self.blocks(self.encoder(to_tanh_range(blurred)))))

    def restore_levels(self, levels: Tensor) -> Tensor:
        restored: Tensor = self(levels / 255)
        return restored * 255

    def fold(self) -> None:
        """Nothing to merge: instance norm takes its statistics anew from each frame."""

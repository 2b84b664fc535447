"""What the image translators of the GAN papers share: their layers, first weights and how batch norm folds away.

Knows single layers; nothing of how a network puts them together.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Norm = Literal["batch", "instance"]


def to_tanh_range(pictures: Tensor) -> Tensor:
    """0..1 to -1..1, where the papers' networks work."""
    return pictures * 2 - 1


def from_tanh_range(pictures: Tensor) -> Tensor:
    """The inverse of `to_tanh_range`."""
    return pictures * 0.5 + 0.5


class InstanceNorm(nn.Module):
    """Each channel of each picture to mean 0 and variance 1 (Ulyanov et al., arXiv 1607.08022), scaled and shifted.

    The scale and shift are learned, as in the Torch code of CycleGAN. Always takes the statistics of its input,
    in eval mode too.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        # Not `nn.InstanceNorm2d`: it looks at sizes in Python, which export by tracing warns of.
        return torch.instance_norm(x, self.weight, self.bias, None, None, True, 0.0, 1e-5, torch.backends.cudnn.enabled)


def norm_layer(norm: Norm, width: int) -> nn.Module:
    """The layer that `norm` names."""
    return nn.BatchNorm2d(width) if norm == "batch" else InstanceNorm(width)


def draw_weights(network: nn.Module) -> None:
    """Draw the first weights as in DCGAN (arXiv 1511.06434): normal with deviation 0.02, scales about 1, no bias."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d | InstanceNorm):
            nn.init.normal_(layer.weight, 1.0, 0.02)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def fold_batch_norms(network: nn.Module) -> None:
    """Merge each batch norm into the convolution before it; computes what `network` computes in eval mode.

    Looks into `nn.Sequential`s, and leaves an identity in the place of each norm, so that indices stay.
    """
    for row in network.modules():
        if not isinstance(row, nn.Sequential):
            continue
        for index, (before, norm) in enumerate(pairwise(row)):
            if isinstance(before, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
                mean, variance = norm.running_mean, norm.running_var
                assert mean is not None and variance is not None
                with torch.no_grad():
                    before.weight, before.bias = fuse_conv_bn_weights(
                        before.weight,
                        before.bias,
                        mean,
                        variance,
                        norm.eps,
                        norm.weight,
                        norm.bias,
                        transpose=isinstance(before, nn.ConvTranspose2d),
                    )
                row[index + 1] = nn.Identity()

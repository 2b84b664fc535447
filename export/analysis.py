"""Measure a network without data: its cost, and how far a pixel of its output looks.

Knows networks and gradients; nothing of files or training.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from .blur import CASES, to_light
from .leaves import dead_leaves
from .networks.generator import Generator


def count_parameters(generator: Generator) -> int:
    """Number of weights and biases."""
    return sum(parameter.numel() for parameter in generator.parameters())


def mac_per_pixel(generator: Generator) -> float:
    """Multiply-accumulates of all convolutions, transposed ones too, for each pixel of a frame; in eval mode."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):  # each weight of a filter works once for each pixel that it gives
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.ConvTranspose2d):  # each weight works once for each pixel that it takes
            total += inputs[0].numel() * module.weight[0].numel()

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    hooks = [module.register_forward_hook(count) for module in generator.modules() if isinstance(module, kinds)]
    # At one stride the deepest map can be a single pixel, which has no variance for an instance norm to divide by.
    side = max(2, math.ceil(64 / generator.stride)) * generator.stride
    try:
        with torch.no_grad():
            generator(torch.zeros(1, 3, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    return total / side**2


def effective_reach_px(generator: Generator, *, energy: float = 0.999, side: int = 256, samples: int = 16) -> int:
    """How far around a pixel lies the given share of the energy of its gradient, in px; 0 if it looks nowhere.

    The effective receptive field of Luo et al. (arXiv 1701.04128), measured on a blurred synthetic scene of
    `side` px, or of two strides if that is more. It is far smaller than the theoretical field, which a deep
    bottom makes wider than most tiles. The greater one counts of the output and of its difference from the
    input: of a network that adds a correction, the input itself would outweigh the surroundings; of one that
    draws its output anew, the difference would be mostly the input.
    """
    stride = generator.stride
    side = max(2, math.ceil(side / stride)) * stride
    rng = np.random.default_rng(0)
    scene = CASES["motion 9"](dead_leaves(side, side, rng), rng)
    blurred = torch.from_numpy(to_light(scene)).permute(2, 0, 1)[None].contiguous().requires_grad_()
    output = generator(blurred)[0].sum(0)
    by_distance = np.zeros((2, side))
    rows = np.arange(side)
    for y, x in rng.integers(side * 3 // 8, side * 5 // 8, (samples, 2)):
        (gradient,) = torch.autograd.grad(output[y, x], blurred, retain_graph=True)
        distance = np.maximum(np.abs(rows - y)[:, None], np.abs(rows - x)[None, :]).ravel()
        for energies, own in zip(by_distance, (0, 1), strict=True):
            gradient[0, :, y, x] -= own
            power = gradient[0].square().sum(0).double().numpy().ravel()
            if power.any():  # every sample counts alike, however flat its surroundings
                energies += np.bincount(distance, power / power.sum(), minlength=side)
    return max(int(np.searchsorted(energies.cumsum(), energy * energies.sum())) for energies in by_distance)


def overlap_px(generator: Generator) -> int:
    """How much tiles must overlap for seams to vanish: the effective reach in whole strides; 0 if it is not tiled."""
    if generator.whole_frame:
        return 0
    return max(1, math.ceil(effective_reach_px(generator) / generator.stride)) * generator.stride

"""Measure a network without data: its cost, and how far a pixel of its output looks.

Knows networks and gradients; nothing of files or training.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .blur import CASES, to_light
from .leaves import dead_leaves
from .networks.restore import RestoreNet


def count_parameters(network: nn.Module) -> int:
    """Number of weights and biases."""
    return sum(parameter.numel() for parameter in network.parameters())


def mac_per_pixel(network: RestoreNet) -> float:
    """Multiply-accumulates of all convolutions for each pixel of a frame."""
    total = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += output.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    side = network.config.stride * 4
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    return total / side**2


def effective_reach_px(network: RestoreNet, *, energy: float = 0.999, side: int = 256, samples: int = 16) -> int:
    """How far around a pixel lies the given share of the energy of its gradient, in px; 0 if it looks nowhere.

    The effective receptive field of Luo et al. (arXiv 1701.04128), measured on a blurred synthetic scene. Only
    the correction counts: the input itself is added pixel by pixel. It is far smaller than the theoretical
    field, which a deep bottom makes wider than most tiles.
    """
    rng = np.random.default_rng(0)
    scene = CASES["motion 9"](dead_leaves(side, side, rng), rng)
    blurred = torch.from_numpy(to_light(scene)).permute(2, 0, 1)[None].contiguous().requires_grad_()
    by_distance = np.zeros(side)
    rows = np.arange(side)
    for y, x in rng.integers(side * 3 // 8, side * 5 // 8, (samples, 2)):
        correction = network.correction(blurred)[0, :, y, x].sum()
        (gradient,) = torch.autograd.grad(correction, blurred)
        power = gradient[0].square().sum(0).double().numpy()
        distance = np.maximum(np.abs(rows - y)[:, None], np.abs(rows - x)[None, :])
        total = power.sum()
        if total > 0:  # every sample counts alike, however flat its surroundings
            by_distance += np.bincount(distance.ravel(), power.ravel() / total, minlength=side)
    if not by_distance.any():
        return 0
    return int(np.searchsorted(by_distance.cumsum(), energy * by_distance.sum()))


def overlap_px(network: RestoreNet) -> int:
    """How much tiles must overlap for seams to vanish: the effective reach, in whole strides."""
    stride = network.config.stride
    return max(1, math.ceil(effective_reach_px(network) / stride)) * stride

"""How near one picture is to another: PSNR, SSIM and colour shift.

Knows pairs of pictures, uint8 RGB (H, W, 3), as arrays; nothing of files or of what made them.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from .blur import Picture

CEILING_DB = 100.0
"""The PSNR of equal pictures, whose error of nothing would otherwise make means infinite."""


SSIM_WINDOW_PX = 11
"""The least side of a picture that SSIM takes."""


def _check(truth: Picture, picture: Picture) -> None:
    if truth.shape != picture.shape or truth.dtype != np.uint8 or picture.dtype != np.uint8:
        raise ValueError(
            f"pictures must be uint8 of one shape, got {truth.dtype} {truth.shape} and {picture.dtype} {picture.shape}"
        )


def psnr(truth: Picture, picture: Picture) -> float:
    """Peak signal to noise ratio in dB over all pixels and channels; at most `CEILING_DB`."""
    _check(truth, picture)
    difference = truth.astype(np.float32) - picture
    error = float(np.mean(np.square(difference), dtype=np.float64))
    return min(CEILING_DB, 10 * math.log10(255**2 / error)) if error else CEILING_DB


def ssim(truth: Picture, picture: Picture) -> float:
    """Structural similarity, 1 for equal pictures; the mean over the channels and over all whole windows.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment", IEEE TIP 2004: Gaussian windows of 11 px,
    sigma 1.5, K1 = 0.01, K2 = 0.03.
    """
    _check(truth, picture)
    if min(truth.shape[:2]) < SSIM_WINDOW_PX:
        raise ValueError(
            f"SSIM needs at least {SSIM_WINDOW_PX}x{SSIM_WINDOW_PX} pixels, got {truth.shape[1]}x{truth.shape[0]}"
        )
    x, y = truth.astype(np.float64), picture.astype(np.float64)
    mean_x, mean_y = _window(x), _window(y)
    variance_x, variance_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return float(likeness.mean())


def _window(values: NDArray[np.float64]) -> NDArray[np.float64]:
    smooth = cv2.GaussianBlur(values, (SSIM_WINDOW_PX, SSIM_WINDOW_PX), 1.5)
    rim = SSIM_WINDOW_PX // 2
    return np.asarray(smooth[rim:-rim, rim:-rim], np.float64)


def colour_shift(truth: Picture, picture: Picture) -> float:
    """How far the mean colour moved in the a*b* plane of CIELAB (sRGB, D65); about 1 is just visible."""
    _check(truth, picture)
    moved = _mean_ab(picture) - _mean_ab(truth)
    return float(np.hypot(moved[0], moved[1]))


def _mean_ab(picture: Picture) -> NDArray[np.float64]:
    lab = cv2.cvtColor(picture.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    return np.asarray(lab[..., 1:].mean(axis=(0, 1), dtype=np.float64), np.float64)

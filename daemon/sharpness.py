"""How blurred a frame is: the width of its sharpest edges, as the sigma of a Gaussian in pixels.

Knows single frames; nothing of what came before, or of what is to be done about it.

The steepest slope of an edge, as a share of its height, tells its width: that is how Polyblur (Delbracio et al., arXiv
2012.09322) measures a whole picture. Here it is measured block by block, and a few of the blocks must be sharp: else
one line of sharp text, such as a camera's clock, would make a blurred picture pass for a sharp one. Of four directions
the most blurred counts, since movement leaves the edges along it sharp.
"""

from __future__ import annotations

from math import erf, sqrt
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from .frame import Pixels

BLOCK_PX: Final = 64
LEAST_CONTRAST: Final = 24
"""Levels of 255 between the darkest and the brightest pixel of a block that has an edge to be measured."""
LEAST_BLOCKS: Final = 3
"""Fewer with an edge say nothing of a frame."""
SHARPEST: Final = 0.15
"""The share of the blocks by whose sharpest the frame is measured."""
MOST_PIXELS: Final = 1 << 19
"""Of larger frames, only evenly spread bands of lines are looked at: the measure must cost next to nothing."""

_SIGMAS: Final = np.arange(1, 401) / 40


def _slopes(step_px: float) -> NDArray[np.float64]:
    """The greatest difference of two pixels `step_px` apart on an edge of height 1, for each sigma; it falls."""
    return np.array([erf(step_px / 2 / (sigma * sqrt(2))) for sigma in _SIGMAS])


_STRAIGHT: Final = _slopes(1)
_DIAGONAL: Final = _slopes(sqrt(2))


def blur_sigma(pixels: Pixels) -> float | None:
    """The sigma of the blur of `pixels` (H, W, 3), uint8 or uint16, in px; about 0.5 for a picture that is sharp.

    None where nothing has an edge, as in fog and darkness.
    """
    height, width = pixels.shape[:2]
    if height < 2 or width < 2:
        return None
    tops = range(0, max(1, height - BLOCK_PX // 2), BLOCK_PX)
    every = min(len(tops), -(-len(tops) * BLOCK_PX * width // MOST_PIXELS))
    # Steepest slope in each direction and contrast, of each block: (5, blocks).
    found = np.concatenate([_blocks(pixels[top : top + BLOCK_PX]) for top in tops[every // 2 :: every]], axis=1)
    contrast = found[4]
    found = found[:4, contrast >= LEAST_CONTRAST] / contrast[contrast >= LEAST_CONTRAST]
    if found.shape[1] < LEAST_BLOCKS:
        return None
    steepest = np.quantile(found, 1 - SHARPEST, axis=1)
    sigmas = [
        np.interp(-slope, -slopes, _SIGMAS)
        for slope, slopes in zip(steepest, (_STRAIGHT, _STRAIGHT, _DIAGONAL, _DIAGONAL), strict=True)
    ]
    return float(max(sigmas))


def _blocks(band: Pixels) -> NDArray[Any]:
    if band.dtype != np.uint8:
        band = np.asarray(cv2.convertScaleAbs(band, alpha=1 / 257), np.uint8)
    grey = cv2.cvtColor(band, cv2.COLOR_RGB2GRAY)
    starts = np.arange(0, max(1, grey.shape[1] - BLOCK_PX // 2), BLOCK_PX)

    def greatest(lines: Any) -> NDArray[Any]:
        return np.maximum.reduceat(lines.max(axis=0), starts).astype(np.float64)

    return np.stack(
        [
            greatest(cv2.absdiff(grey[:, 1:], grey[:, :-1])),
            greatest(cv2.absdiff(grey[1:], grey[:-1])),
            greatest(cv2.absdiff(grey[1:, 1:], grey[:-1, :-1])),
            greatest(cv2.absdiff(grey[1:, :-1], grey[:-1, 1:])),
            greatest(grey) - np.minimum.reduceat(grey.min(axis=0), starts),
        ]
    )

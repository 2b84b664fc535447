"""Draw pictures with the statistics of natural ones, for where no photograph is at hand.

Knows arrays only.
"""

from __future__ import annotations

import cv2
import numpy as np

from .blur import Picture, Rng


def dead_leaves(height: int, width: int, rng: Rng, *, leaves: int = 1500) -> Picture:
    """Discs of all sizes that cover one another, uint8 RGB (height, width, 3).

    The dead leaves model has the edges and the spectrum of photographs: Lee, Mumford and Huang, "Occlusion
    models for natural images", IJCV 2001. Each leaf has a grain of its own.
    """
    smallest, largest = 2.0, max(height, width) / 3
    # A density that falls with the cube of the radius makes the scene look the same at all scales.
    share = rng.random(leaves)
    radii = np.sort((smallest**-2 + share * (largest**-2 - smallest**-2)) ** -0.5)[::-1]
    centres = rng.integers(0, (height, width), (leaves, 2))
    canvas = np.full((height, width, 3), rng.integers(60, 190, 3), np.uint8)
    for radius, (y, x) in zip(radii, centres, strict=True):
        colour = tuple(int(level) for level in rng.integers(0, 256, 3))
        cv2.circle(canvas, (int(x), int(y)), int(radius), colour, -1, cv2.LINE_AA)
    grain = rng.normal(0, 6, (height, width, 1))
    return np.asarray((canvas + grain).clip(0, 255).round(), np.uint8)

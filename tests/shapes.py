"""Pictures with hard edges in all directions, and how they look blurred."""

from __future__ import annotations

import cv2
import numpy as np


def shapes(height: int = 480, width: int = 640) -> np.ndarray:
    """RGB: bright and dark ellipses with hard edges in all directions, as a lens of 0.5 px draws them."""
    rng = np.random.default_rng(5)
    picture = np.full((height, width, 3), 128, np.uint8)
    for _ in range(height * width // 1200):
        centre, axes = (int(rng.integers(side)) for side in (width, height)), (int(a) for a in rng.integers(8, 30, 2))
        colour = rng.integers(0, 256, 3).tolist()
        cv2.ellipse(picture, tuple(centre), tuple(axes), int(rng.integers(180)), 0, 360, colour, -1)
    return blurred(picture, 0.5)


def blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma))

"""Put a frame together of which only a share of what the engine changed is kept, or nothing.

Knows mergers and arrays; nothing of why the share is what it is.
"""

from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .frame import Pixels


class AnyMerger(Protocol):
    """A frame being put together; `out` (H, W, 3) is complete after the last tile."""

    @property
    def out(self) -> Any: ...

    def add(self, index: int, tile: NDArray[Any]) -> None:
        """Blend in what the engine gave for tile `index` of the plan."""


class Untouched:
    """Leaves a frame as it came, whatever the engine gives."""

    def __init__(self, pixels: Pixels, out: Pixels) -> None:
        self.out = out
        np.copyto(out, pixels)

    def add(self, index: int, tile: NDArray[Any]) -> None: ...


class Weakened:
    """Keeps the share `strength` of what `whole` makes of `pixels`, once all `tiles` are there."""

    def __init__(self, whole: AnyMerger, tiles: int, pixels: Pixels, strength: float) -> None:
        self.out: Pixels = whole.out
        self._whole, self._missing, self._pixels, self._strength = whole, tiles, pixels, strength

    def add(self, index: int, tile: NDArray[Any]) -> None:
        self._whole.add(index, tile)
        self._missing -= 1
        if not self._missing:
            cv2.addWeighted(self.out, self._strength, self._pixels, 1 - self._strength, 0, dst=self.out)

"""Cut a frame into tiles that a model can take, and blend them back without seams.

Knows geometry and arrays; nothing of engines or streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import DaemonError

Tiles = NDArray[np.uint8] | NDArray[np.float32]  # (N, H, W, 3)


@dataclass(frozen=True)
class Axis:
    """One dimension of a plan: `length` px are covered by tiles of `tile` px that begin at `origins`.

    `weights` gives every tile's share of each of its pixels, (tiles, tile); over the frame they sum to 1. The
    outer quarter of an overlap belongs to the neighbour alone, because a tile's rim lacks its surroundings.
    """

    length: int
    tile: int
    origins: tuple[int, ...]
    weights: NDArray[np.float32]

    @classmethod
    def plan(cls, length: int, stride: int, limit: int, fixed: bool, overlap: int) -> Axis:
        """Cover `length` px with equal tiles of at most `limit` px (exactly, if `fixed`), on multiples of `stride`."""
        padded = -(-length // stride) * stride
        if fixed:
            padded = max(padded, limit)
        if padded <= limit:
            return cls(length, padded, (0,), np.ones((1, padded), np.float32))
        overlap = min(-(-overlap // stride) * stride, limit - stride)
        count = -(-(padded - overlap) // (limit - overlap))
        tile = limit
        if not fixed:  # share the work evenly, instead of one narrow tile at the end
            even = -(-(padded + (count - 1) * overlap) // count)
            tile = min(limit, -(-even // stride) * stride)
        last = padded - tile
        origins = tuple(round(last * i / (count - 1) / stride) * stride for i in range(count))
        return cls(length, tile, origins, cls._weights(padded, tile, origins))

    @staticmethod
    def _weights(padded: int, tile: int, origins: tuple[int, ...]) -> NDArray[np.float32]:
        weights = np.ones((len(origins), tile), np.float64)
        for i, (origin, following) in enumerate(pairwise(origins)):
            shared = origin + tile - following
            ramp = np.clip((np.arange(shared) + 0.5 - shared / 4) / (shared / 2), 0, 1)
            weights[i, tile - shared :] *= 1 - ramp
            weights[i + 1, :shared] *= ramp
        total = np.zeros(padded)
        for origin, line in zip(origins, weights, strict=True):
            total[origin : origin + tile] += line
        for origin, line in zip(origins, weights, strict=True):
            line /= total[origin : origin + tile]
        return weights.astype(np.float32)

    @property
    def padded(self) -> int:
        return self.origins[-1] + self.tile


@dataclass(frozen=True)
class TilePlan:
    """How frames of one size are cut: rows times columns of equal tiles, in row order.

    Tiles begin on multiples of the model's stride, so that a tile computes what the whole frame would. What a
    frame lacks at its right and bottom edge is mirrored, and cut off again.
    """

    rows: Axis
    columns: Axis

    @classmethod
    def for_frame(
        cls, height: int, width: int, *, stride: int, limit: tuple[int, int], fixed: bool = False, overlap: int = 0
    ) -> TilePlan:
        """Plan frames of `height` x `width` for an engine that takes at most `limit` (H, W), or exactly that."""
        if height < 1 or width < 1:
            raise DaemonError(f"a frame must have at least 1x1 pixels, got {width}x{height}")
        return cls(
            Axis.plan(height, stride, limit[0], fixed, overlap), Axis.plan(width, stride, limit[1], fixed, overlap)
        )

    @property
    def count(self) -> int:
        return len(self.rows.origins) * len(self.columns.origins)

    @property
    def tile(self) -> tuple[int, int]:
        """(H, W) of every tile."""
        return self.rows.tile, self.columns.tile

    def split(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The tiles of a frame (H, W, 3), as (count, tile H, tile W, 3); a view of the frame where it is one tile."""
        bottom, right = self.rows.padded - self.rows.length, self.columns.padded - self.columns.length
        if bottom or right:
            pixels = _mirror(pixels, bottom, right)
        if self.count == 1:
            return pixels[None]
        high, wide = self.tile
        return np.stack([pixels[y : y + high, x : x + wide] for y in self.rows.origins for x in self.columns.origins])

    def merger(self, out: NDArray[Any]) -> Merger:
        """Start putting tiles together in `out` (H, W, 3), which is of their type."""
        return Merger(self, out)

    def merge(self, tiles: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Put all tiles of a frame together; the inverse of `split` to rounding."""
        out = np.empty((self.rows.length, self.columns.length, 3), tiles.dtype) if out is None else out
        merger = self.merger(out)
        for index, tile in enumerate(tiles):
            merger.add(index, tile)
        return out


class Merger:
    """A frame being put together; tiles may come in any order. `out` is complete after the last one."""

    def __init__(self, plan: TilePlan, out: NDArray[Any]) -> None:
        self.out = out
        self._plan, self._missing = plan, plan.count
        if plan.count > 1:
            self._sum = np.zeros((plan.rows.padded, plan.columns.padded, 3), np.float32)

    def add(self, index: int, tile: NDArray[Any]) -> None:
        """Blend in tile `index` of the plan, (tile H, tile W, 3)."""
        rows, columns = self._plan.rows, self._plan.columns
        self._missing -= 1
        if self._plan.count == 1:
            np.copyto(self.out, tile[: rows.length, : columns.length])
            return
        i, j = divmod(index, len(columns.origins))
        weights = rows.weights[i][:, None, None] * columns.weights[j][None, :, None]
        y, x = rows.origins[i], columns.origins[j]
        self._sum[y : y + rows.tile, x : x + columns.tile] += tile * weights
        if not self._missing:
            if self.out.dtype != np.float32:
                np.rint(self._sum, out=self._sum)
            np.copyto(self.out, self._sum[: rows.length, : columns.length], casting="unsafe")


def _mirror(pixels: NDArray[Any], bottom: int, right: int) -> NDArray[Any]:
    # OpenCV mirrors as often as it takes, so a frame of 1x1 pixels fills a tile too.
    return np.asarray(cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_REFLECT_101))

"""For which shapes a plan is built.

Knows sizes; nothing of TensorRT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..model import Manifest

TYPICAL_PX = (720, 1280)
"""The frame size (H, W) that the general profile is tuned for."""

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
"""Least, most frequent and greatest shape."""


@dataclass(frozen=True)
class Profiles:
    """What a plan takes: one profile for each of `sizes` (H, W), and a general one for anything up to the tile.

    ranges: for each profile, the general one last, the range of every graph input by its name.
    """

    ranges: tuple[dict[str, Range], ...]
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls, manifest: Manifest, tile: tuple[int, int], max_batch: int, sizes: Sequence[tuple[int, int]] = ()
    ) -> Profiles:
        """Profiles for up to `max_batch` tiles of each of `sizes`, and of anything up to `tile` (H, W)."""
        step = manifest.stride
        high, wide = (min(side, max(step, px // step * step)) for side, px in zip(tile, TYPICAL_PX, strict=True))
        general = (tile, tile, tile) if manifest.fixed_tile else ((step, step), (high, wide), tile)
        own = tuple(
            size
            for size in dict.fromkeys(sizes)
            if not manifest.fixed_tile
            and all(0 < side <= most and side % step == 0 for side, most in zip(size, tile, strict=True))
        )
        spans = [(size, size, size) for size in own] + [general]
        return cls(tuple(_ranges(manifest, max_batch, span) for span in spans), own)

    def index(self, height: int, width: int) -> int:
        """The profile for tiles of `height` x `width`."""
        return self.sizes.index((height, width)) if (height, width) in self.sizes else len(self.sizes)


def _ranges(manifest: Manifest, max_batch: int, span: Sequence[tuple[int, int]]) -> dict[str, Range]:
    """The range of every input, for one tile of the first two sizes of `span` and `max_batch` of the third."""
    batches = [(count, *size) for count, size in zip((1, 1, max_batch), span, strict=True)]

    def over(channels: int, scale: int) -> Range:
        least, usual, greatest = ((n, channels, high // scale, wide // scale) for n, high, wide in batches)
        return least, usual, greatest

    frames = tuple((*batch, 3) for batch in batches)
    states = {state.input: over(state.channels, state.scale) for state in manifest.states}
    return {"frames": (frames[0], frames[1], frames[2]), **states}


def fitted(shape: Shape, wanted: Range) -> Range:
    """`wanted`, but for the sides that a graph input of `shape` has fixed itself: those that are not -1."""
    least, usual, greatest = (
        tuple(side if own < 0 else own for own, side in zip(shape, sides, strict=True)) for sides in wanted
    )
    return least, usual, greatest

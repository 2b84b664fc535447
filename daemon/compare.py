"""Before and after in one picture: beside each other, or the one picture split in the middle.

Knows a decoder's frame and the restored pixels; nothing of files or encoders.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import av
import numpy as np
from numpy.typing import NDArray

from .frame import Colour, Pixels
from .planes import Original, with_change

Comparison = Literal["side", "split"]
"""`side`: before and after, beside each other; `split`: one picture, its left half as it was."""

_LINE_PX: Final = 2


def compared_size(comparison: Comparison | None, size: tuple[int, int], pix_fmt: str, rotation: int) -> tuple[int, int]:
    """(W, H) of the result for a frame of `size`. rotation: counter-clockwise, by which a player turns it."""
    if comparison != "side":
        return size
    width, height = _half(size, pix_fmt)
    return (width, 2 * height) if rotation % 180 else (2 * width, height)


def compared(
    comparison: Comparison,
    original: Original,
    restored: Pixels,
    pix_fmt: str,
    colour: Colour,
    size: tuple[int, int],
    rotation: int,
) -> av.VideoFrame:
    """What `planes.with_change` gives, with the original in the half that a player shows on the left.

    size: (W, H) that the frame has in the result, whatever it has by itself. The original's half has its own planes.
    """
    if comparison == "split":
        mixed = restored.copy()
        lines = _turned(mixed, rotation)
        middle = lines.shape[1] // 2
        lines[:, :middle] = _turned(original.pixels, rotation)[:, :middle]
        lines[:, max(0, middle - _LINE_PX // 2) : middle + _LINE_PX // 2] = np.iinfo(mixed.dtype).max
        return with_change(original, mixed, pix_fmt, colour, size)
    width, height = _half(size, pix_fmt)
    beside = av.VideoFrame(*compared_size("side", size, pix_fmt, rotation), pix_fmt)
    corners = [(0, 0), (0, height) if rotation % 180 else (width, 0)]
    if rotation % 360 in (180, 270):
        corners.reverse()
    # One after the other: the second may be written over the first.
    _put(beside, corners[0], with_change(original, original.pixels, pix_fmt, colour, size), (width, height))
    after = with_change(original, restored, pix_fmt, colour, size)
    _put(beside, corners[1], after, (width, height))
    beside.color_primaries, beside.color_trc = after.color_primaries, after.color_trc
    beside.colorspace, beside.color_range = after.colorspace, after.color_range
    return beside


def _turned(pixels: Any, rotation: int) -> Any:
    """A view as a player shows it."""
    return np.rot90(pixels, rotation // 90 % 4)


def _half(size: tuple[int, int], pix_fmt: str) -> tuple[int, int]:
    """A frame's size without the column or line that has chroma with one beyond it."""
    shape = av.VideoFormat(pix_fmt, 64, 64)
    across, down = 64 // (shape.chroma_width(64) or 64), 64 // (shape.chroma_height(64) or 64)
    return max(across, size[0] - size[0] % across), max(down, size[1] - size[1] % down)


def _put(into: av.VideoFrame, corner: tuple[int, int], frame: av.VideoFrame, size: tuple[int, int]) -> None:
    """Copy the part of `size` of a frame to `corner`, plane by plane."""
    for index, (ours, theirs) in enumerate(zip(into.planes, frame.planes, strict=True)):
        across, down = into.width // ours.width, into.height // ours.height
        bytes_a_pixel = _bytes_a_pixel(into, index)
        left, top = corner[0] // across * bytes_a_pixel, corner[1] // down
        width, height = size[0] // across * bytes_a_pixel, size[1] // down
        _bytes(ours)[top : top + height, left : left + width] = _bytes(theirs)[:height, :width]


def _bytes_a_pixel(frame: av.VideoFrame, plane: int) -> int:
    if len(frame.planes) == 1:
        return frame.format.padded_bits_per_pixel // 8
    return sum(-(-component.bits // 8) for component in frame.format.components if component.plane == plane)


def _bytes(plane: Any) -> NDArray[np.uint8]:
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)

"""A decoder's frame with what a model changed added to its planes: what was not changed stays bit for bit.

Knows one frame at a time; nothing of files, streams or encoders.

A picture that goes to RGB and back loses half a level each way, some of its chroma, what lies beyond RGB's gamut, and
its transparency. Here only the change goes back: it is taken in RGB, goes through the frame's matrix, is thinned out
to where chroma is, and is rounded once, in as many bits as the planes have.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from typing import Any, Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from .colour import FULL_RANGE, WRITE, colour_of, matrix_of, range_of
from .frame import Colour, Pixels

_PLANAR: Final = re.compile(r"(gray|yuva?4\d\dp|gbra?p)(?:(9|10|12|14|16)le)?")
_GREY: Final = re.compile("gray(|..le)")
_DEPTHS: Final = (8, 9, 10, 12, 14, 16)
_SUBSAMPLED: Final = {(0, 0): "444", (1, 0): "422", (1, 1): "420", (0, 1): "440", (2, 0): "411", (2, 2): "410"}
"""By the powers of two by which chroma is narrower and lower."""
# Shares of red and blue in luma, by libswscale's names of the matrices.
_WEIGHTS: Final = {1: (0.2126, 0.0722), 4: (0.3, 0.11), 5: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}

Change = NDArray[np.float32]
"""Restored less original, RGB (H, W, 3), in units of the pixels."""


@dataclass(frozen=True)
class Original:
    """A frame as its decoder gave it, and the RGB that was made of it: what a source gives as `Frame.origin`."""

    frame: av.VideoFrame
    pixels: Pixels


def with_change(
    original: Original, restored: Pixels, pix_fmt: str, colour: Colour, size: tuple[int, int]
) -> av.VideoFrame:
    """The original's frame plus how `restored` differs from its pixels, as `pix_fmt`, with `colour`'s matrix and tags.

    restored: RGB (H, W, 3) like the original's pixels.
    size: (W, H) of the result; the frame and the change are scaled where it is another.

    The frame's side data, such as captions, come along. The original's own planes may be written to: it is used up.
    """
    shape = _Shape.of(pix_fmt)
    frame = _converted(original.frame, shape.planar, colour, size)
    if cv2.norm(restored, original.pixels, cv2.NORM_INF):
        change = cv2.subtract(restored, original.pixels, dtype=cv2.CV_32F)
        if change.shape[1::-1] != size:
            change = cv2.resize(change, size, interpolation=cv2.INTER_CUBIC)
        white = 255 if original.pixels.dtype == np.uint8 else 65535
        _add(frame, _floats(change), shape, colour, original.frame, white)
    if shape.planar != pix_fmt:
        frame = _converted(frame, pix_fmt, colour, size)
    frame.color_primaries, frame.color_trc = colour.primaries, colour.transfer
    frame.colorspace, frame.color_range = colour.matrix, range_of(colour)
    frame.pict_type = 0  # else the encoder makes a key frame wherever the source had one
    return frame


@dataclass(frozen=True)
class _Shape:
    """What planes a pixel format has, or the planar one next to it, by name.

    kind: what stands before the depth: `gray`, `yuv420p`, `gbrap` and so on.
    """

    planar: str
    kind: str
    depth: int

    @classmethod
    def of(cls, pix_fmt: str) -> _Shape:
        if match := _PLANAR.fullmatch(pix_fmt):
            return cls(pix_fmt, match[1], int(match[2] or 8))
        pixel = av.VideoFormat(pix_fmt)
        alpha = "a" if any(component.is_alpha for component in pixel.components) else ""
        colours = sum(not component.is_alpha for component in pixel.components)
        bits = max((component.bits for component in pixel.components), default=8)
        depth = next((each for each in _DEPTHS if each >= bits), 16)
        if colours == 1 and not alpha and not pixel.has_palette:
            kind = "gray"
        elif pixel.is_rgb or pixel.has_palette or colours == 1:
            kind = f"gbr{alpha}p"
        else:
            wide, high = ((64 // side(64)).bit_length() - 1 for side in (pixel.chroma_width, pixel.chroma_height))
            kind = f"yuv{alpha}{_SUBSAMPLED[wide, high]}p"
        return cls(kind + (f"{depth}le" if depth > 8 else ""), kind, depth)


def _converted(frame: av.VideoFrame, pix_fmt: str, colour: Colour, size: tuple[int, int]) -> av.VideoFrame:
    """`frame` in another format and size, in memory that may be written to."""
    own = colour_of(frame)
    to_rgb, from_rgb = av.VideoFormat(pix_fmt).is_rgb, frame.format.is_rgb or frame.format.has_palette
    # Among those of one kind, codes stay as they are: libswscale takes grey for full range, whatever its tag says.
    ranges = (range_of(own), range_of(colour)) if from_rgb != to_rgb else (FULL_RANGE, FULL_RANGE)
    matrix = matrix_of(colour if from_rgb else own, frame.height)
    done = frame.reformat(
        width=size[0],
        height=size[1],
        format=pix_fmt,
        interpolation=WRITE,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=ranges[0],
        dst_color_range=ranges[1],
    )
    done.make_writable()
    if _GREY.fullmatch(frame.format.name) and pix_fmt.startswith("yuv") and size == (frame.width, frame.height):
        # libswscale makes it brighter by a fraction of a percent.
        luma = np.rint(np.ldexp(_lines(frame, 0), _depth_of(done) - _depth_of(frame)))
        np.copyto(_lines(done, 0), np.minimum(luma, 2 ** _depth_of(done) - 1), casting="unsafe")
    return done


def _add(frame: av.VideoFrame, change: Change, shape: _Shape, colour: Colour, like: av.VideoFrame, white: int) -> None:
    """Add `change`, in which `white` is 255 or 65535, to planes of `shape`; it was made of the frame `like`."""
    most = 2**shape.depth - 1
    if shape.kind.startswith("gbr"):
        for index, channel in enumerate((1, 2, 0)):
            _add_to_plane(frame, index, change[..., channel] * np.float32(most / white), most)
        return
    full = colour.full_range or like.format.name.startswith("gray")
    centred = like.format.name.startswith("yuvj")
    red, blue = _WEIGHTS[matrix_of(colour, frame.height)]
    luma = np.array([red, 1 - red - blue, blue])
    unit = (most if full else 219 * 2 ** (shape.depth - 8)) / white
    _add_to_plane(frame, 0, cv2.transform(change, (luma * unit)[None]), most)
    if shape.kind == "gray":
        return
    unit = (most if full else 224 * 2 ** (shape.depth - 8)) / white
    u = (np.array([0, 0, 1]) - luma) / (2 * (1 - blue)) * unit
    v = (np.array([1, 0, 0]) - luma) / (2 * (1 - red)) * unit
    thin = _thinned(change, frame.planes[1].width, frame.planes[1].height, centred)
    for index, row in ((1, u), (2, v)):
        _add_to_plane(frame, index, cv2.transform(thin, row[None]), most)


def _thinned(change: Change, width: int, height: int, centred: bool) -> Change:
    """The change where chroma is: between two lines, and on every second column or, `centred`, between two."""
    while change.shape[0] > height or change.shape[1] > width:
        low, narrow = change.shape[0] > height, change.shape[1] > width
        edges = low and change.shape[0] % 2, narrow and change.shape[1] % 2
        if any(edges):
            change = _floats(cv2.copyMakeBorder(change, 0, edges[0], 0, edges[1], cv2.BORDER_REPLICATE))
        size = change.shape[1] // (2 if narrow else 1), change.shape[0] // (2 if low else 1)
        # Half as many by linear interpolation are the means of two: four times as fast as by area.
        half = _floats(cv2.resize(change, size, interpolation=cv2.INTER_LINEAR))
        if narrow and not centred and size[0] > 1:
            between = cv2.resize(change[:, 1:-1], (size[0] - 1, size[1]), interpolation=cv2.INTER_LINEAR)
            cv2.addWeighted(half[:, 1:], 0.5, between, 0.5, 0, dst=half[:, 1:])
        change = half
    return change


def _floats(array: Any) -> Change:
    return np.asarray(array, np.float32)


def _add_to_plane(frame: av.VideoFrame, index: int, change: NDArray[Any], most: int) -> None:
    values = _lines(frame, index)
    changed = cv2.add(values, change, dtype=cv2.CV_8U if most == 255 else cv2.CV_16U)  # rounds, and stops at 0
    np.copyto(values, changed if most in (255, 65535) else np.minimum(changed, most), casting="unsafe")


def _lines(frame: av.VideoFrame, index: int) -> Pixels:
    """The writable codes (H, W) of a planar frame's plane."""
    plane = frame.planes[index]
    kind: Any = np.uint8 if _depth_of(frame) == 8 else np.uint16
    memory: Any = memoryview(plane)
    if plane.line_size < 0:  # the lines lie from bottom to top, and the pointer at the last of them
        first = plane.buffer_ptr + plane.line_size * (plane.height - 1)
        memory = (ctypes.c_uint8 * -(plane.line_size * plane.height)).from_address(first)
    lines: Pixels = np.frombuffer(memory, kind).reshape(plane.height, -1)[:, : plane.width]
    return lines[::-1] if plane.line_size < 0 else lines


def _depth_of(frame: av.VideoFrame) -> int:
    return frame.format.components[0].bits

"""Exact conversion between a decoder's frames and RGB pixels, by the frame's own matrix and range.

Knows one frame at a time; nothing of files, streams or encoders.

The default conversions of PyAV and OpenCV are off by a level and more, and lose half a level each way; here the
error is that of rounding to 8 bits, or to 16 where that is asked for.
"""

from __future__ import annotations

from typing import Any, Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from .frame import Colour, Pixels

UNSPECIFIED: Final = 2
FULL_RANGE: Final = 2  # of AVColorRange; 1 is limited, 0 is unspecified

# SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT
READ: Final = 0x42004
# ... | SWS_FULL_CHR_H_INP: without it, chroma that only went to RGB and back differs twice as much.
WRITE: Final = 0x46004

# Matrices of H.273 that libswscale computes, by its own names for them.
_MATRICES: Final = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_LIMITED_WHITE: Final = 255 << 8  # in 16 bits, as libswscale reads it
_HD_HEIGHT: Final = 720
_RGB_PLANES: Final = (2, 0, 1)  # where gbrp keeps R, G and B


def colour_of(frame: av.VideoFrame) -> Colour:
    """The frame's colour tags as they are, whatever `to_rgb` assumes for those that are unspecified."""
    full = (
        frame.color_range == FULL_RANGE
        or frame.format.name.startswith("yuvj")
        or frame.format.is_rgb
        or frame.format.has_palette
    )
    return Colour(int(frame.color_primaries), int(frame.color_trc), int(frame.colorspace), full)


def depth_of(pix_fmt: str) -> int:
    """Bits of the deepest component of a pixel format."""
    return max((component.bits for component in av.VideoFormat(pix_fmt).components), default=8)


def to_rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """RGB (H, W, 3) of a frame in any pixel format, more than 8 bits as 8. An alpha plane is left out.

    An unspecified matrix is taken for what players take it for: BT.601 below 720 lines, BT.709 from there on.
    """
    if depth_of(frame.format.name) > 8 and _white_of(frame) != _LIMITED_WHITE:  # libswscale is off by a level there
        return np.asarray(cv2.convertScaleAbs(to_deep_rgb(frame), alpha=1 / 257), np.uint8)
    # Three times as fast as NumPy, and ten times as fast as libswscale's own packed output.
    return np.asarray(cv2.merge(_read(frame, "gbrp")), np.uint8)


def to_deep_rgb(frame: av.VideoFrame) -> NDArray[np.uint16]:
    """The same in 16 bits: whatever the frame's depth, 65535 is white."""
    merged = cv2.merge(_read(frame, "gbrp16le"))
    return np.asarray(cv2.addWeighted(merged, 65535 / _white_of(frame), merged, 0, 0), np.uint16)


def _white_of(frame: av.VideoFrame) -> int:
    """What libswscale makes of white in 16 bits: it shifts, where it should scale."""
    name, depth = frame.format.name, min(depth_of(frame.format.name), 16)
    if name.startswith(("gray", "ya")) or colour_of(frame).full_range:
        return int(2**depth - 1) << (16 - depth)
    return _LIMITED_WHITE


def _read(frame: av.VideoFrame, planar_format: str) -> list[Pixels]:
    """R, G and B, (H, W) each."""
    colour = colour_of(frame)
    matrix = matrix_of(colour, frame.height)
    planar = frame.reformat(
        format=planar_format,
        interpolation=READ,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=range_of(colour),
        dst_color_range=FULL_RANGE,
    )
    planes = _planes(planar)
    return [planes[i] for i in _RGB_PLANES]


def from_rgb(pixels: Pixels, pix_fmt: str, colour: Colour) -> av.VideoFrame:
    """The inverse of both: a frame of `pix_fmt` from RGB (H, W, 3) of 8 or 16 bits, with `colour`'s matrix and tags."""
    height, width = pixels.shape[:2]
    planar = av.VideoFrame(width, height, "gbrp" if pixels.dtype == np.uint8 else "gbrp16le")
    planes = _planes(planar)
    cv2.split(pixels, [planes[i] for i in _RGB_PLANES])  # writes into the planes
    matrix = matrix_of(colour, height)
    frame = planar.reformat(
        format=pix_fmt,
        interpolation=WRITE,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=FULL_RANGE,
        dst_color_range=range_of(colour),
    )
    frame.color_primaries, frame.color_trc = colour.primaries, colour.transfer
    frame.colorspace = colour.matrix
    frame.pict_type = 0  # else the encoder makes a key frame wherever the source had one
    return frame


def assumed_matrix(height: int) -> int:
    """The matrix of H.273 that players take for a video of `height` lines without a tag."""
    return 1 if height >= _HD_HEIGHT else 6


def matrix_of(colour: Colour, height: int) -> int:
    return _MATRICES.get(colour.matrix) or _MATRICES[assumed_matrix(height)]


def range_of(colour: Colour) -> int:
    return FULL_RANGE if colour.full_range else 1


def _planes(frame: av.VideoFrame) -> list[Pixels]:
    """Writable views (H, W) of the planes of a `gbrp` or `gbrp16le`, without the padding at the end of each line."""
    kind: Any = np.uint8 if frame.format.name == "gbrp" else np.uint16
    return [
        np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)[:, : plane.width] for plane in frame.planes
    ]

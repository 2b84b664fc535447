"""Exact conversion between a decoder's frames and RGB pixels, by the frame's own matrix and range.

Knows one frame at a time; nothing of files, streams or encoders.

The default conversions of PyAV and OpenCV are off by a level and more, and lose half a level each way; here the
error is that of rounding to 8 bits. More than 8 bits a component are read as 8.
"""

from __future__ import annotations

from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from .frame import Colour

UNSPECIFIED: Final = 2
FULL_RANGE: Final = 2  # of AVColorRange; 1 is limited, 0 is unspecified

# SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT
_READ: Final = 0x42004
# ... | SWS_FULL_CHR_H_INP: without it, chroma that only went to RGB and back differs twice as much.
_WRITE: Final = 0x46004

_FASTEST: Final = 0x10  # SWS_POINT

# Matrices of H.273 that libswscale computes, by its own names for them.
_MATRICES: Final = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
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
    """RGB (H, W, 3) of a frame in any pixel format. An alpha plane is left out.

    An unspecified matrix is taken for what players take it for: BT.601 below 720 lines, BT.709 from there on.
    """
    colour = colour_of(frame)
    matrix = _matrix(colour, frame.height)
    planar = frame.reformat(
        format="gbrp",
        interpolation=_READ,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=_range(colour),
        dst_color_range=FULL_RANGE,
    )
    planes = _planes(planar)
    # Three times as fast as NumPy, and ten times as fast as libswscale's own packed output.
    return np.asarray(cv2.merge([planes[i] for i in _RGB_PLANES]), np.uint8)


def from_rgb(
    pixels: NDArray[np.uint8], pix_fmt: str, colour: Colour, like: av.VideoFrame | None = None
) -> av.VideoFrame:
    """The inverse of `to_rgb`: a frame of `pix_fmt` from RGB (H, W, 3), with `colour`'s matrix and tags.

    like: the frame that the pixels came from, in the same size. It tells where chroma lies between the pixels,
    which has no tag in `Colour`, and gives its side data, such as captions.
    """
    height, width = pixels.shape[:2]
    if like is not None and like.format.name != "gbrp":
        # Only a conversion carries these over. The fastest will do: its pixels are replaced.
        planar = like.reformat(format="gbrp", interpolation=_FASTEST)
    else:
        planar = av.VideoFrame(width, height, "gbrp")
    planes = _planes(planar)
    cv2.split(pixels, [planes[i] for i in _RGB_PLANES])  # writes into the planes
    matrix = _matrix(colour, height)
    frame = planar.reformat(
        format=pix_fmt,
        interpolation=_WRITE,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=FULL_RANGE,
        dst_color_range=_range(colour),
    )
    frame.color_primaries, frame.color_trc = colour.primaries, colour.transfer
    frame.colorspace = colour.matrix
    frame.pict_type = 0  # else the encoder makes a key frame wherever the source had one
    return frame


def assumed_matrix(height: int) -> int:
    """The matrix of H.273 that players take for a video of `height` lines without a tag."""
    return 1 if height >= _HD_HEIGHT else 6


def _matrix(colour: Colour, height: int) -> int:
    return _MATRICES.get(colour.matrix) or _MATRICES[assumed_matrix(height)]


def _range(colour: Colour) -> int:
    return FULL_RANGE if colour.full_range else 1


def _planes(frame: av.VideoFrame) -> list[NDArray[np.uint8]]:
    """Writable views (H, W) of an 8-bit planar frame's planes, without the padding at the end of each line."""
    return [
        np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        for plane in frame.planes
    ]

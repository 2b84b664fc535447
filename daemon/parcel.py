"""A restored frame made ready for the wire, once for all who receive it in the same format.

Knows formats and buffers; no sockets.
"""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
import zmq
from numpy.typing import NDArray

from . import wire
from .buffers import Buffer
from .errors import SinkError
from .frame import Frame, Publication

HEADER_ROOM = 1536
"""Bytes that a header takes at most, besides the names in it."""

_FROM_RGB = {"bgr24": cv2.COLOR_RGB2BGR, "gray8": cv2.COLOR_RGB2GRAY}


@dataclass(frozen=True)
class Format:
    """How the pixels of a frame are sent. jpeg_quality: 1 to 100."""

    pixel_format: wire.PixelFormat = "rgb24"
    encoding: Literal["raw", "jpeg"] = "raw"
    jpeg_quality: int = 90

    def size(self, height: int, width: int) -> int:
        """Bytes of the raw pixels of a frame."""
        return height * width * (1 if self.pixel_format == "gray8" else 3)


RGB = Format()
"""What frames are merged in."""


@dataclass(frozen=True)
class Parcel:
    """A frame ready to be sent: a raw one in `buffer`, which is let go when the parcel is garbage, others as `data`."""

    stream: str
    topic: bytes
    frame: Frame
    publication: Publication
    format: Format
    data: bytes = b""
    buffer: Buffer | None = None
    offset: int = 0

    @property
    def message(self) -> zmq.Frame:
        """All of it."""
        return self.buffer.message() if self.buffer else zmq.Frame(self.data)

    @property
    def shared(self) -> bool:
        """Its pixels lie in shared memory."""
        return self.buffer is not None and self.buffer.name is not None

    def reference(self, token: int) -> bytes:
        """The message that says where in shared memory the pixels are, lent as `token`."""
        assert self.buffer is not None
        assert self.buffer.name is not None
        size = self.format.size(self.frame.height, self.frame.width)
        segment = wire.Segment(self.buffer.name, self.offset, size, token)
        header = wire.frame_header(self.frame, self.publication, "raw", self.format.pixel_format, segment)
        return wire.pack_head(self.topic, header)


def head_room(topic: bytes, model: str) -> int:
    """How much of a buffer to leave free before the pixels of a stream."""
    names = len(json.dumps([topic[:-1].decode(), model], ensure_ascii=False).encode())
    return -(-(len(topic) + names + HEADER_ROOM) // wire.ALIGNMENT) * wire.ALIGNMENT


def raw_parcel(
    topic: bytes, frame: Frame, publication: Publication, pixel_format: wire.PixelFormat, buffer: Buffer, head_size: int
) -> Parcel:
    """Complete `buffer`, which has the pixels after `head_size` bytes."""
    header = wire.frame_header(frame, publication, "raw", pixel_format)
    buffer.array[:head_size] = np.frombuffer(wire.pack_head(topic, header, head_size), np.uint8)
    frame = replace(frame, origin=None)  # what the source gave is not kept while the parcel waits
    parcel = Parcel(frame.stream, topic, frame, publication, Format(pixel_format), buffer=buffer, offset=head_size)
    weakref.finalize(parcel, buffer.done).atexit = False
    return parcel


def jpeg_parcel(topic: bytes, frame: Frame, publication: Publication, format: Format, data: bytes) -> Parcel:  # noqa: A002
    """Put a header before a JPEG file."""
    head = wire.pack_head(topic, wire.frame_header(frame, publication, "jpeg", format.pixel_format))
    frame = replace(frame, origin=None)
    return Parcel(frame.stream, topic, frame, publication, format, data=head + data)


def convert(frame: Frame, pixel_format: wire.PixelFormat, out: NDArray[np.uint8]) -> None:
    """Write the pixels of `frame` into `out`, raw bytes (size,), in `pixel_format`."""
    shape = wire.raw_shape(frame.height, frame.width, pixel_format)
    cv2.cvtColor(frame.pixels, _FROM_RGB[pixel_format], out.reshape(shape))


def encode_jpeg(frame: Frame, format: Format) -> bytes:  # noqa: A002
    """The pixels of `frame` as a JPEG file. SinkError for a frame that is too large."""
    conversion = cv2.COLOR_RGB2GRAY if format.pixel_format == "gray8" else cv2.COLOR_RGB2BGR  # what OpenCV encodes
    options = [cv2.IMWRITE_JPEG_QUALITY, format.jpeg_quality]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(frame.pixels, conversion), options)
    if not done:
        raise SinkError(f"a frame must be at most 65535 pixels a side to be JPEG, got {frame.width}x{frame.height}")
    return data.tobytes()

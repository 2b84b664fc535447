"""The wire format: one ZeroMQ message of one part for each frame.

Knows bytes, and the options that both ends set; opens no socket. `docs/2-wire-format.md` describes it for clients
in other languages.

    topic           UTF-8, 1 to 255 bytes, no NUL: the stream's name
    0x00            ends the topic: ZeroMQ matches prefixes, and `cam1` must not match `cam10`
    header length   unsigned 32-bit little endian
    header          JSON object, UTF-8; spaces may follow it within the length
    padding         zeros up to the next multiple of 64 from the message's start
    payload         pixels as `encoding` says

One part, because a socket with CONFLATE keeps only the last part of a message.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import zmq
from numpy.typing import NDArray

from .frame import Colour, Frame, Publication

VERSION = 1
ALIGNMENT = 64
MAX_TOPIC = 255
MAX_HEADER = 1 << 16

Buffer = bytes | bytearray | memoryview
Encoding = Literal["raw", "jpeg", "shared"]
PixelFormat = Literal["rgb24", "bgr24", "gray8"]

# Finds a peer whose host went away. ZeroMQ's own heartbeats are not for frames: one that takes longer than their
# timeout counts as a dead peer, and a socket whose queue is full aborts its process (libzmq issues 4364, 4767).
TCP_KEEPALIVE = (
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 2),
    (zmq.TCP_KEEPALIVE_INTVL, 1),
    (zmq.TCP_KEEPALIVE_CNT, 3),
)


class WireError(ValueError):
    """A message is not of this format, or of a newer one."""


class VersionError(WireError):
    """A message is of a newer version of this format."""


@dataclass(frozen=True)
class Message:
    """A message taken apart; `payload` is a view of the bytes it came in."""

    topic: str
    header: dict[str, Any]
    payload: memoryview


@dataclass(frozen=True)
class Segment:
    """Where the pixels of a frame lie in shared memory: `size` bytes from `offset` of `file`, on loan as `token`."""

    file: str
    offset: int
    size: int
    token: int


def raw_shape(height: int, width: int, pixel_format: PixelFormat) -> tuple[int, ...]:
    """Of an array of uncompressed pixels, uint8: (H, W, 3), or (H, W) for gray."""
    return (height, width) if pixel_format == "gray8" else (height, width, 3)


def topic_bytes(stream: str) -> bytes:
    """What to subscribe to for `stream`, terminator included. WireError for a name that cannot be a topic."""
    name = stream.encode(errors="replace")
    taken = b"\0" in name or name == b"\1"  # the end, and the topic of answers
    if name.decode() != stream or not 1 <= len(name) <= MAX_TOPIC or taken:
        raise WireError(f"a stream's name must be 1 to {MAX_TOPIC} bytes of UTF-8 without NUL, got {stream!r}")
    return name + b"\0"


def frame_header(
    frame: Frame,
    publication: Publication,
    encoding: Literal["raw", "jpeg"],
    pixel_format: PixelFormat = "rgb24",
    segment: Segment | None = None,
) -> dict[str, Any]:
    """The header of a frame; field by field what `Frame` and `Publication` say. With `segment`, pixels lie there."""
    fields = {
        "version": VERSION,
        "kind": "frame",
        "stream": frame.stream,
        "seq": frame.seq,
        "epoch": frame.epoch,
        "pts": frame.pts,
        "time_base": [frame.time_base.numerator, frame.time_base.denominator],
        "captured_ns": frame.captured_ns,
        "clock": frame.clock,
        "arrived_ns": frame.arrived_ns,
        "published_ns": publication.published_ns,
        "published_unix_ns": publication.published_unix_ns,
        "boot_id": publication.boot_id,
        "run_id": publication.run_id,
        "model": publication.model,
        "spent_ns": dict(frame.spent_ns),
        "drops": frame.drops,
        "width": frame.width,
        "height": frame.height,
        "pixel_format": pixel_format,
        "encoding": "shared" if segment else encoding,
        "colour": [frame.colour.primaries, frame.colour.transfer, frame.colour.matrix, int(frame.colour.full_range)],
        "sample_aspect_ratio": [frame.sample_aspect_ratio.numerator, frame.sample_aspect_ratio.denominator],
        "rotation": frame.rotation,
    }
    return fields if segment is None else {**fields, "shared": vars(segment)}


def pack_head(topic: bytes, header: dict[str, Any], size: int | None = None) -> bytes:
    """Everything before the payload. With `size`, exactly that long (a multiple of 64), so that the payload may
    be written before the header is known; WireError if the header does not fit.
    """
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    begin = len(topic) + 4
    if size is None:
        head = topic + struct.pack("<I", len(text)) + text
        return head + bytes(-len(head) % ALIGNMENT)
    if begin + len(text) > size:
        raise WireError(f"a header of {len(text)} bytes does not fit in {size - begin}")
    return topic + struct.pack("<I", size - begin) + text.ljust(size - begin)


def unpack(data: Buffer) -> Message:
    """Take a message apart without copying the payload. WireError for anything but this format."""
    view = memoryview(data).cast("B")
    end = bytes(view[: MAX_TOPIC + 1]).find(b"\0")
    if end < 1:
        raise WireError("a message must begin with a topic and a NUL")
    if len(view) < end + 5:
        raise WireError(f"a message must hold a header length after its topic, got {len(view)} bytes in all")
    (length,) = struct.unpack_from("<I", view, end + 1)
    begin = end + 5
    if length > MAX_HEADER or begin + length > len(view):
        raise WireError(f"a header must be at most {MAX_HEADER} bytes and within its message, got {length}")
    try:
        topic = bytes(view[:end]).decode()
        header = json.loads(bytes(view[begin : begin + length]))
    except (ValueError, RecursionError) as error:
        raise WireError(f"a header must be a JSON object in UTF-8 ({error})") from error
    if not isinstance(header, dict):
        raise WireError(f"a header must be a JSON object, got {type(header).__name__}")
    if version(header) > VERSION:
        raise VersionError(
            f"the publisher speaks wire format {version(header)}, this client {VERSION}: update the client"
        )
    payload = view[min(len(view), -(-(begin + length) // ALIGNMENT) * ALIGNMENT) :]
    return Message(topic, header, payload)


def version(header: Mapping[str, Any]) -> int:
    """The version that a message says it is of."""
    number = header.get("version")
    if type(number) is not int or number < 1:
        raise WireError(f"'version' must be a whole number from 1, got {number!r}")
    return number


def to_frame(message: Message) -> Frame:
    """The frame of a message of kind `frame`, in RGB. WireError for a malformed one.

    Raw pixels are a read-only view of the payload, whatever their format: of `bgr24`, `pixels[..., ::-1]` is the
    contiguous array that was sent; of `gray8`, `pixels[..., 0]` is. A message with a segment needs the bytes that lie
    there as its payload.
    """
    header = message.header
    try:
        width, height = _count(header["width"]), _count(header["height"])
        primaries, transfer, matrix, full_range = header["colour"]
        return Frame(
            stream=str(header["stream"]),
            seq=int(header["seq"]),
            pts=None if header["pts"] is None else int(header["pts"]),
            time_base=Fraction(*map(int, header["time_base"])),
            captured_ns=int(header["captured_ns"]),
            clock="sender" if header["clock"] == "sender" else "arrival",
            arrived_ns=int(header["arrived_ns"]),
            epoch=int(header["epoch"]),
            pixels=_pixels(header["encoding"], header["pixel_format"], message.payload, height, width),
            colour=Colour(int(primaries), int(transfer), int(matrix), bool(full_range)),
            sample_aspect_ratio=Fraction(*map(int, header["sample_aspect_ratio"])),
            rotation=int(header["rotation"]),
            spent_ns={str(stage): int(ns) for stage, ns in header["spent_ns"].items()},
            drops=int(header["drops"]),
            publication=Publication(
                run_id=str(header["run_id"]),
                model=str(header["model"]),
                boot_id=str(header["boot_id"]),
                published_ns=int(header["published_ns"]),
                published_unix_ns=int(header["published_unix_ns"]),
            ),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise malformed("a frame's header", error) from error


def to_segment(message: Message) -> Segment | None:
    """Where the pixels of a frame lie, if that is not in the message. WireError for a malformed place."""
    if message.header.get("encoding") != "shared":
        return None
    try:
        place = message.header["shared"]
        numbers = [whole(name, place[name]) for name in ("offset", "size", "token")]
        return Segment(file_name(place["file"]), *numbers)
    except (KeyError, TypeError) as error:
        raise malformed("'shared'", error) from error


def malformed(what: str, error: Exception) -> WireError:
    """What to raise for `error`, which reading a field of `what` led to."""
    if isinstance(error, WireError):
        return error
    if isinstance(error, KeyError):
        return WireError(f"{what} must hold {error.args[0]!r}")
    return WireError(f"{what} holds a value of the wrong kind ({error})")


def whole(name: str, value: object) -> int:
    """`value`, if it is a number that can be a token, an offset or a size."""
    if type(value) is not int or not 0 <= value < 1 << 53:  # what every language's numbers hold exactly
        raise WireError(f"{name!r} must hold whole numbers from 0 to 2^53, got {value!r}")
    return value


def file_name(value: object) -> str:
    """`value`, if it names a file of a daemon: a message must not lead a client to any other."""
    if not isinstance(value, str) or not value.startswith("deblurd-") or "/" in value or "\0" in value:
        raise WireError(f"a file in shared memory must be named deblurd-..., got {value!r}")
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 1 << 16:
        raise WireError(f"'width' and 'height' must be 1 to 65536, got {value!r}")
    return value


def _pixels(encoding: object, pixel_format: object, payload: memoryview, height: int, width: int) -> NDArray[np.uint8]:
    if pixel_format not in get_args(PixelFormat):
        raise WireError(f"'pixel_format' must be rgb24, bgr24 or gray8, got {pixel_format!r}")
    shape = raw_shape(height, width, pixel_format)  # type: ignore[arg-type]
    if encoding in ("raw", "shared"):
        size = math.prod(shape)
        if len(payload) != size:
            raise WireError(f"a raw payload of {width}x{height} must be {size} bytes, got {len(payload)}")
        pixels = np.frombuffer(payload, np.uint8).reshape(shape)
    elif encoding == "jpeg":
        pixels = _decode_jpeg(payload, shape, pixel_format)
    else:
        raise WireError(f"'encoding' must be raw, jpeg or shared, got {encoding!r}")
    if pixel_format == "gray8":
        pixels = np.broadcast_to(pixels[..., None], (height, width, 3))
    elif pixel_format == "bgr24":
        pixels = pixels[..., ::-1]
    pixels.flags.writeable = False
    return pixels


def _decode_jpeg(payload: memoryview, shape: tuple[int, ...], pixel_format: object) -> NDArray[np.uint8]:
    try:
        import cv2  # only here: a client of raw frames does without it
    except ImportError as error:
        raise WireError("frames encoded as JPEG need the package opencv-python-headless") from error
    flags = cv2.IMREAD_GRAYSCALE if pixel_format == "gray8" else cv2.IMREAD_COLOR
    # A frame is turned by its header, and not once more by what a JPEG file may say.
    flags |= cv2.IMREAD_IGNORE_ORIENTATION
    data = cv2.imdecode(np.frombuffer(payload, np.uint8), flags) if len(payload) else None
    if data is None:
        raise WireError("a JPEG payload does not decode")
    if data.shape != shape:
        raise WireError(f"a JPEG payload must be {shape[1]}x{shape[0]}, got {data.shape[1]}x{data.shape[0]}")
    if pixel_format == "rgb24":
        cv2.cvtColor(data, cv2.COLOR_BGR2RGB, data)
    return np.asarray(data, np.uint8)

"""Frames as encoded video, sent to an RTSP server or written to a file, one by one as they come.

Knows encoders and containers; nothing of where frames come from, nor of names and times of files.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final, cast

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .address import Address, redact
from .colour import UNSPECIFIED, assumed_matrix, from_rgb
from .errors import SinkError
from .frame import Colour, Frame
from .media import reason
from .target import FORMATS
from .timeline import RATE

# None of them holds frames back, and each makes a key frame where it is told to.
_NVENC: Final = {"preset": "p4", "tune": "ll", "rc": "vbr", "delay": "0", "zerolatency": "1", "forced-idr": "1"}
ENCODERS: Final[dict[str, dict[str, str]]] = {
    # force-cfr: else the stream itself says that it has as many frames a second as there are ticks.
    "libx264": {"preset": "veryfast", "tune": "zerolatency", "forced-idr": "1", "x264-params": "force-cfr=1"},
    "libx265": {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "forced-idr": "1",
        "x265-params": "log-level=none",
    },
    "libsvtav1": {"preset": "10", "svtav1-params": "pred-struct=1"},
    "h264_nvenc": _NVENC,
    "hevc_nvenc": _NVENC,
}
"""Options by the name of the encoder."""

KEY_EVERY_S: Final = 2
_THREADS: Final = 4  # each of x264's is a slice of the picture more

# A process that is killed loses the last half second of an MKV, and of an MP4 what came since the last key frame.
_FILE_OPTIONS: Final = {
    "matroska": {"flush_packets": "1", "cluster_time_limit": "500"},
    "mp4": {"flush_packets": "1", "movflags": "frag_keyframe+empty_moov+default_base_moof"},
}

_BROKEN: Final = (av.FFmpegError, OSError, ValueError)


class LastingError(SinkError):
    """Time alone will not mend it: a wrong password, an encoder that is not there."""


@dataclass(frozen=True)
class Shape:
    """What an encoded video is of throughout. A frame of another one begins another video.

    width, height: as encoded, both even: a last column or row may be there twice.
    """

    width: int
    height: int
    colour: Colour
    sample_aspect_ratio: Fraction
    turns: int
    """Quarters of a turn, counter-clockwise, that make the picture upright."""

    @classmethod
    def of(cls, frame: Frame) -> Shape:
        turns = frame.rotation // 90 % 4 if frame.rotation % 90 == 0 else 0
        width, height, ratio = frame.width, frame.height, frame.sample_aspect_ratio or Fraction(1)
        if turns % 2:
            width, height, ratio = height, width, 1 / ratio
        colour = frame.colour
        if colour.matrix in (0, UNSPECIFIED):  # 0 is RGB
            colour = replace(colour, matrix=assumed_matrix(height), full_range=colour.matrix != 0 and colour.full_range)
        return cls(width + width % 2, height + height % 2, colour, ratio, turns)

    def fit(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The pixels (H, W, 3) of a frame of this shape, as they are encoded."""
        if self.turns:
            pixels = np.ascontiguousarray(np.rot90(pixels, self.turns))
        bottom, right = self.height - pixels.shape[0], self.width - pixels.shape[1]
        if bottom or right:
            return np.asarray(cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_REPLICATE), np.uint8)
        return pixels


@dataclass(frozen=True)
class VideoOptions:
    """How to encode: the name of an encoder in ENCODERS, and its constant quality, where less is better."""

    encoder: str = "libx264"
    crf: float = 20.0


class VideoOutput:
    """One video, from its first frame on. SinkError where it cannot be; LastingError where waiting will not help.

    place: an RTSP server, or a file, whose suffix names its container.
    rate: frames a second, roughly.
    began_unix_s: when its first frame was made.
    """

    def __init__(
        self, place: Address | Path, shape: Shape, rate: Fraction, began_unix_s: float, options: VideoOptions
    ) -> None:
        self.shape = shape
        self.frames = 0
        """Those that were written."""
        self._place = place
        self._key_due = 0  # ticks
        os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 can be kept from printing by no option
        try:
            self._container = _open(place)
            try:
                self._video = self._begin(rate, began_unix_s, options)
            except BaseException:
                self.abandon()
                raise
        except _BROKEN as error:
            if isinstance(place, Path):
                place.unlink(missing_ok=True)
            raise _failure(error, place) from None

    def _begin(self, rate: Fraction, began_unix_s: float, options: VideoOptions) -> VideoStream:
        video = self._add_video(rate, options)
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(began_unix_s))
        self._container.metadata["creation_time"] = f"{second}.{int(began_unix_s % 1 * 1e6):06d}Z"
        self._container.start_encoding()
        return video

    def _add_video(self, rate: Fraction, options: VideoOptions) -> VideoStream:
        encoder, shape = options.encoder, self.shape
        try:
            video = cast(VideoStream, self._container.add_stream(encoder, rate=rate.limit_denominator(1001)))
        except ValueError:  # of PyAV for a name that it does not know
            raise LastingError(f"the encoder {encoder} is not there, or not for this target") from None
        context = video.codec_context
        video.width, video.height, video.pix_fmt = shape.width, shape.height, "yuv420p"
        video.time_base = context.time_base = Fraction(1, RATE)
        video.sample_aspect_ratio = shape.sample_aspect_ratio
        context.color_primaries, context.color_trc = shape.colour.primaries, shape.colour.transfer
        context.colorspace, context.color_range = shape.colour.matrix, 2 if shape.colour.full_range else 1
        context.gop_size = 10 * KEY_EVERY_S * max(1, round(rate))  # key frames come by time, long before
        context.thread_count = min(_THREADS, os.cpu_count() or 1)
        quality = "cq" if encoder.endswith("_nvenc") else "crf"
        context.options = ENCODERS[encoder] | {quality: f"{options.crf:g}"}
        if encoder.startswith(("hevc", "libx265")) and self._container.format.name == "mp4":
            context.codec_tag = "hvc1"  # Apple's players know no other
        try:
            context.open(strict=False)
        except _BROKEN as error:
            why = reason(error) if isinstance(error, av.FFmpegError) else str(error)
            needs = ", which needs an NVIDIA GPU that encodes," if encoder.endswith("_nvenc") else ""
            raise LastingError(f"the encoder {encoder}{needs} does not work here ({why})") from None
        return video

    @property
    def size(self) -> int | None:
        """Bytes of the file so far, 0 for a server; None when there is no file of this name any more."""
        try:
            return self._place.stat().st_size if isinstance(self._place, Path) else 0
        except OSError:
            return None

    def write(self, frame: Frame, ticks: int) -> None:
        """Encode and send a frame of this output's shape at its time, which is after that of the one before it."""
        pixels = self.shape.fit(cast("NDArray[np.uint8]", frame.pixels))
        picture = from_rgb(pixels, "yuv420p", self.shape.colour)
        picture.time_base, picture.pts = Fraction(1, RATE), ticks
        if ticks >= self._key_due:
            picture.pict_type = 1  # I
            self._key_due = ticks + KEY_EVERY_S * RATE
        try:
            for packet in self._video.encode(picture):
                self._container.mux_one(packet)
        except _BROKEN as error:
            raise _failure(error, self._place) from None
        self.frames += 1

    def close(self) -> None:
        """Write what the encoder still holds, and the end of the file. SinkError if that fails."""
        try:
            if self.frames:
                for packet in self._video.encode(None):
                    self._container.mux_one(packet)
            self._container.close()
        except _BROKEN as error:
            raise _failure(error, self._place) from None

    def abandon(self) -> None:
        """End without more words; a file without any frame is removed."""
        with suppress(*_BROKEN):
            self._container.close()
        if not self.frames and isinstance(self._place, Path):
            self._place.unlink(missing_ok=True)


def _open(place: Address | Path) -> OutputContainer:
    if isinstance(place, Address):
        return av.open(place.url, "w", format="rtsp", container_options={"rtsp_transport": "tcp"})
    name = FORMATS[place.suffix.lower()]
    # With the protocol before it, a name like `a:b.mkv` is not taken for one.
    return av.open(f"file:{place.absolute()}", "w", format=name, container_options=_FILE_OPTIONS[name])


def _failure(error: Exception, place: Address | Path) -> SinkError:
    """What went wrong, without the name of the place: FFmpeg's own text may hold a password."""
    if isinstance(place, Path):
        why = reason(error) if isinstance(error, av.FFmpegError) else str(error)
        return SinkError(f"{place} cannot be written ({why})")
    if isinstance(error, av.error.HTTPUnauthorizedError):
        return LastingError("wants a user and password" if place.user is None else "refuses this user and password")
    if isinstance(error, av.error.HTTPForbiddenError | av.error.HTTPNotFoundError):
        return LastingError("takes no video there; check the path of the address")
    if isinstance(error, av.error.ExperimentalError):
        return LastingError("AV1 goes into files only, as FFmpeg's RTP has it for a trial; choose another encoder")
    number = getattr(error, "errno", None)
    if number == errno.ECONNREFUSED:
        return SinkError("connection refused; check that the server is on, and the port of the address")
    if number in (errno.EPIPE, errno.ECONNRESET):
        return SinkError("the server closed the connection")
    if number == errno.EIO and not _resolves(place):
        return SinkError(f"there is no host named {place.host}; check the address")
    why = reason(error) if isinstance(error, av.FFmpegError) else str(error)
    return SinkError(f"the server does not take the video ({redact(why, place)})")


def _resolves(address: Address) -> bool:
    try:
        socket.getaddrinfo(address.host, None)
    except (OSError, UnicodeError):
        return False
    return True

"""From access units to clean frames: what follows a loss is held back until decoding can begin anew.

Knows no packets and no session.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

import av
from av.codec.context import Flags

from ..deinterlace import Deinterlacer
from .assembly import AccessUnit
from .errors import RtspError
from .payload import annex_b
from .sdp import VideoTrack

_BLOCK: Final = 64  # coded sizes are whole blocks: at most this much more a side than what is shown
_LONGEST_SIDE: Final = 16_384
_MOST_PIXELS: Final = 2**31 - 1  # that FFmpeg can count


@dataclass(frozen=True)
class Decoded:
    """A clean frame, and the access unit that it came in. decode_ns: what decoding took."""

    frame: av.VideoFrame
    unit: AccessUnit
    sample_aspect_ratio: Fraction
    arrived_ns: int
    decode_ns: int


class Decoder:
    """Decodes a track's access units; frames come in display order.

    After a loss, a decoder's error or a damaged frame nothing is given until the next complete key frame, and the
    decoder begins anew with it: what it has of the pictures before must not be seen, even by open groups of pictures.
    For H.264 that is an IDR picture; a recovery point only promises that the picture will look right one day.
    """

    def __init__(self, track: VideoTrack, *, max_pixels: int, deinterlace: bool) -> None:
        self.held = 0
        """Access units that were held back."""
        self.damaged = 0
        """Those of which not everything came, or could be decoded."""
        self._number = -1
        self._max_pixels = max_pixels
        self._parameter_sets = annex_b(track.parameter_sets) if track.codec != "mjpeg" else b""
        self._holding = True
        self._deinterlacer: Deinterlacer[Decoded] | None = Deinterlacer() if deinterlace else None
        self._codec = av.VideoCodecContext.create(track.codec, "r")
        # Frame threads would delay every frame. low_delay only tells H.264 that sets no limit to reordering that there
        # is none until B-frames come: they come in display order all the same.
        self._codec.thread_type, self._codec.thread_count = "SLICE", 1
        self._codec.flags |= Flags.low_delay | Flags.copy_opaque
        # A second lock, for sizes that could not be read from the stream: the decoder makes no room for them.
        self._codec.options = {"max_pixels": str(min(max_pixels + 2 * _BLOCK * _LONGEST_SIDE, _MOST_PIXELS))}

    def decode(self, unit: AccessUnit) -> Iterator[Decoded]:
        """The frames that are complete with `unit`. RtspError for one that is larger than allowed."""
        if unit.size is not None:
            self._check_size(*unit.size, coded=True)
        missed, self._number = unit.number - self._number - 1, unit.number
        if missed:
            self.held += missed
            yield from self._hold()
        if not unit.complete:
            self.damaged += 1
            yield from self._hold()
        if self._holding:
            if not (unit.key and unit.complete):
                self.held += 1
                return
            self._holding = False
            data = self._parameter_sets + unit.data
        else:
            data = unit.data
        yield from self._frames(data, unit)

    def _frames(self, data: bytes, unit: AccessUnit) -> Iterator[Decoded]:
        packet = av.Packet(data)
        packet.pts, packet.opaque = unit.rtp_time, unit
        began = time.monotonic_ns()
        try:
            frames = self._codec.decode(packet)
        except av.FFmpegError:
            self.damaged += 1
            self.held += 1
            yield from self._hold()
            return
        decode_ns = time.monotonic_ns() - began
        for frame in frames:
            if frame.is_corrupt:
                self.damaged += 1
                self.held += 1
                yield from self._begin_anew()
                return
            yield from self._given(frame, decode_ns)

    def _hold(self) -> Iterator[Decoded]:
        """Give what the decoder still has, which is from before the loss; then wait for a key frame."""
        if self._holding:
            return
        try:
            frames = self._codec.decode(None)
        except av.FFmpegError:
            frames = []
        for frame in frames:
            if not frame.is_corrupt:
                yield from self._given(frame, 0)
        yield from self._begin_anew()

    def _begin_anew(self) -> Iterator[Decoded]:
        if self._deinterlacer is not None:
            yield from map(_progressive, self._deinterlacer.flush())
        self._codec.flush_buffers()
        self._holding = True

    def _given(self, frame: av.VideoFrame, decode_ns: int) -> Iterator[Decoded]:
        self._check_size(frame.width, frame.height)
        unit = frame.opaque
        assert isinstance(unit, AccessUnit)
        aspect = self._codec.sample_aspect_ratio or Fraction(1)
        decoded = Decoded(frame, unit, aspect, time.monotonic_ns(), decode_ns)
        if self._deinterlacer is None:
            yield decoded
            return
        yield from map(_progressive, self._deinterlacer.push(frame, decoded))

    def _check_size(self, width: int, height: int, *, coded: bool = False) -> None:
        slack = _BLOCK if coded else 0
        if max(width - slack, 0) * max(height - slack, 0) > self._max_pixels:
            raise RtspError(
                f"a frame must have at most {self._max_pixels} pixels, got {width}x{height};"
                " choose a smaller stream of the camera, or raise max_pixels",
                lasting=True,
            )


def _progressive(filtered: tuple[av.VideoFrame, Decoded]) -> Decoded:
    frame, of = filtered
    return replace(of, frame=frame, arrived_ns=time.monotonic_ns())

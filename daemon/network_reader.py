"""The thread in which FFmpeg connects, reads and decodes a network stream.

Knows decoded frames and when they came; nothing of pixels.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

import av

from .address import Address
from .deinterlace import Deinterlacer
from .errors import SourceError
from .network_errors import failure, no_answer
from .network_media import Media, check_declared_size, check_size, open_network
from .source import LiveOptions

_WAITING: Final = 2  # decoded frames between the two threads
_MICROSECOND: Final = Fraction(1, 1_000_000)
_UNDECODED: Final = 4  # times timeout_s: how long packets may come of which none gives a frame
_NATIVE_FIRST_S: Final = 0.5  # a connection that times out by itself knows better what it waited for


class FrozenError(Exception):
    """Nothing came for too long."""


@dataclass(frozen=True)
class Received:
    """When a packet came: Unix time, monotonic time, and Unix time of the exposure by the sender's clock, or 0."""

    unix_ns: int
    monotonic_ns: int
    sender_ns: int


@dataclass(frozen=True)
class Decoded:
    frame: av.VideoFrame
    pts: int | None
    time_base: Fraction
    sample_aspect_ratio: Fraction
    received: Received
    arrived_ns: int
    decode_ns: int


class NetworkReader:
    """Connects, reads and decodes in a thread of its own, which may be abandoned at any time.

    The thread is a daemon, the only one here, because nothing can interrupt FFmpeg: neither while it connects, nor,
    over HTTP, while it reads, where an interrupted read loses what it has so far; over RTSP it would lose its place
    between packets. All that it blocks in has timeouts, so an abandoned thread soon closes what it opened and ends.
    """

    def __init__(self, address: Address, options: LiveOptions) -> None:
        self._address, self._options = address, options
        self._changed = threading.Condition()
        self._decoded: deque[Decoded] = deque()
        self._error: Exception | None = None
        self._ended = False
        self._opened = False
        self._sign_of_life_s = self._whole_s = 0.0
        self._seen = self._broken = False
        self._began_ns = 0
        self.abandoned = threading.Event()
        self.paced = False
        self.damaged_frames = 0
        self.held_frames = 0

    def start(self) -> None:
        self._sign_of_life_s = time.monotonic()
        threading.Thread(target=self._run, name="network-reader", daemon=True).start()

    def abandon(self) -> None:
        """Let the thread end by itself, and wake who waits for it."""
        self.abandoned.set()
        with self._changed:
            self._decoded.clear()
            self._changed.notify_all()

    def take(self) -> Decoded | None:
        """The next frame; None at the end or when abandoned. Raises SourceError, or FrozenError after timeout_s."""
        with self._changed:
            while not self.abandoned.is_set():
                if self._decoded:
                    decoded = self._decoded.popleft()
                    # Whoever takes late has kept the thread from reading.
                    self._sign_of_life_s = self._whole_s = time.monotonic()
                    self._changed.notify_all()
                    return decoded
                if self._error:
                    raise self._error
                if self._ended:
                    return None
                self._changed.wait(self._patience_s())
            return None

    def _patience_s(self) -> float:
        now = time.monotonic()
        if not self._opened:
            left = self._sign_of_life_s + self._options.open_timeout_s + _NATIVE_FIRST_S - now
            if left <= 0:
                raise no_answer(self._address, self._options)
            return left
        left = self._sign_of_life_s + self._options.timeout_s - now
        if left <= 0:
            raise FrozenError
        most_s = _UNDECODED * self._options.timeout_s
        undecoded = self._whole_s + most_s - now
        if undecoded <= 0:
            raise SourceError(
                f"{self._address}: sends data, but no whole frame for {most_s:g} s; "
                "set the camera to send key frames more often"
            )
        return min(left, undecoded)

    def _run(self) -> None:
        error: Exception | None = None
        try:
            with open_network(self._address, self._options, self.abandoned) as media:
                self._opened = True
                self.paced = media.paced
                self._sign_of_life_s = self._whole_s = time.monotonic()
                self._read(media)
        except Exception as caught:  # noqa: BLE001 - the edge of a thread: raised again by `take`
            error = caught
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def _read(self, media: Media) -> None:
        deinterlacer: Deinterlacer[Decoded] | None = Deinterlacer() if self._options.deinterlace else None
        try:
            for packet in media.container.demux(media.video):
                received = Received(time.time_ns(), time.monotonic_ns(), _sender_ns(packet))
                if self.abandoned.is_set():
                    return
                self._sign_of_life_s = received.monotonic_ns / 1e9
                packet.opaque = received
                for decoded in self._decode(media, packet, received):
                    whole = deinterlacer.push(decoded.frame, decoded) if deinterlacer else [(decoded.frame, decoded)]
                    if not self._put_all(whole):
                        return
                if deinterlacer and self._broken and not self._put_all(deinterlacer.flush()):
                    return
        except (av.error.ExitError, av.error.TimeoutError):
            raise FrozenError from None
        except av.FFmpegError as error:
            raise failure(error, self._address, self._options) from None
        if deinterlacer:
            self._put_all(deinterlacer.flush())
        if not media.finite:
            raise SourceError(f"{self._address}: the server closed the connection")

    def _decode(self, media: Media, packet: av.Packet[Any], received: Received) -> Iterator[Decoded]:
        began = time.monotonic_ns()
        try:
            frames = media.video.decode(packet)
        except av.FFmpegError:
            check_declared_size(self._address, bytes(packet), media.video.codec_context.name, self._options)
            frames = []
            self.damaged_frames += self._seen  # before the first key frame nothing decodes
            self._broken = True
        spent = time.monotonic_ns() - began
        for frame in frames:
            arrived = time.monotonic_ns()
            check_size(self._address, frame.width, frame.height, self._options)
            first, self._seen = not self._seen, True
            self.damaged_frames += frame.is_corrupt
            self._broken = (self._broken and not frame.key_frame) or frame.is_corrupt
            if self._broken:
                self.held_frames += 1
                continue
            if isinstance(frame.opaque, Received):  # of the packet that the frame came in, which may be an earlier one
                received = frame.opaque
            pts, time_base = frame.pts, media.video.time_base or Fraction(1, 90_000)
            if pts is None and first and media.from_zero:
                pts = 0
            if not media.timed:
                self._began_ns = self._began_ns or received.monotonic_ns
                pts, time_base = (received.monotonic_ns - self._began_ns) // 1000, _MICROSECOND
            shape = media.video.codec_context.sample_aspect_ratio or Fraction(1)
            yield Decoded(frame, pts, time_base, shape, received, arrived, spent)

    def _put_all(self, frames: list[tuple[av.VideoFrame, Decoded]]) -> bool:
        return all(self._put(of if frame is of.frame else replace(of, frame=frame)) for frame, of in frames)

    def _put(self, decoded: Decoded) -> bool:
        """Hand over a frame when there is room; False when nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._decoded) < _WAITING or self.abandoned.is_set())
            if self.abandoned.is_set():
                return False
            self._decoded.append(decoded)
            self._changed.notify_all()
            return True


def _sender_ns(packet: av.Packet[Any]) -> int:
    """When the sender says that the picture was taken, from RTCP sender reports; 0 without them."""
    if not packet.has_sidedata("prft"):
        return 0
    (microseconds,) = struct.unpack_from("<q", bytes(packet.get_sidedata("prft")))
    return int(microseconds) * 1000

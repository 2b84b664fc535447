"""Frames of an RTSP camera with the least delay: each is decoded as soon as its last packet is there.

Knows one attempt at one camera; nothing of retrying.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from types import TracebackType
from typing import Any, Final, Self

import av
from av.codec.context import Flags

from ..address import Address, redact
from ..colour import colour_of, to_rgb
from ..deinterlace import Deinterlacer
from ..errors import SourceError
from ..frame import Frame
from ..source import LiveOptions, Progress
from .assembly import REPORT_EVERY_S, AccessUnit, Assembly
from .client import RtspClient
from .connection import Stop
from .errors import FrozenError, RtspError, StoppedError
from .payload import annex_b
from .sdp import VideoTrack

_UNDECODED: Final = 4  # times timeout_s: how long frames may come of which none can be shown


class RtspSource:
    """One attempt at an RTSP camera; a `daemon.source.LiveSource`.

    After a gap or damage, frames are held back until the next whole key frame. Certificates of RTSPS are not
    checked: cameras sign their own.
    """

    live: Final = True
    damage: Final = ()

    def __init__(
        self,
        address: Address,
        options: LiveOptions,
        *,
        stream: str,
        on_state: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._address, self._options, self._stream, self._on_state = address, options, stream, on_state
        self._lock = threading.Lock()
        self._closed = False
        self._stop: Stop | None = None
        self._assembly: Assembly | None = None
        self._held = self._damaged = self._seq = 0
        self._holding = True

    @property
    def counters(self) -> Mapping[str, int]:
        """damaged_frames were not whole or did not decode; held_frames are those held back, damaged ones too."""
        lost = self._assembly.lost if self._assembly else 0
        return {"lost_packets": lost, "damaged_frames": self._damaged, "held_frames": self._held}

    def __iter__(self) -> Iterator[Frame]:
        """The frames; once."""
        with self._lock:
            if self._closed:
                return
            self._stop = stop = Stop()
        self._on_state("connecting")
        try:
            yield from self._session(stop)
        except StoppedError:
            return
        except FrozenError as error:
            self._on_state("frozen")
            raise SourceError(f"{self._address}: {error}") from None
        except RtspError as error:
            raise SourceError(f"{self._address}: {error.text}{redact(error.got, self._address)}") from None
        finally:
            stop.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._stop is not None:
                self._stop.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _session(self, stop: Stop) -> Iterator[Frame]:
        options = self._options
        client = RtspClient(
            self._address, stop, transport=options.transport, open_timeout_s=options.open_timeout_s, verify=False
        )
        try:
            track = client.open()
            self._assembly = Assembly(track, reorder=options.transport == "udp")
            yield from self._frames(client, track, self._assembly)
        finally:
            client.close()

    def _frames(self, client: RtspClient, track: VideoTrack, assembly: Assembly) -> Iterator[Frame]:
        decoder = _decoder(track)
        deinterlacer: Deinterlacer[tuple[AccessUnit, int]] | None = (
            Deinterlacer() if self._options.deinterlace else None
        )
        alive = whole_at = now = time.monotonic()
        report_at = now + REPORT_EVERY_S
        while True:
            frozen_at = alive + self._options.timeout_s
            if now >= frozen_at:
                raise FrozenError(f"frozen: no frame came for {self._options.timeout_s:g} s")
            if now >= whole_at + _UNDECODED * self._options.timeout_s:
                raise RtspError(
                    f"sends data, but no whole frame for {_UNDECODED * self._options.timeout_s:g} s; "
                    "set the camera to send key frames more often"
                )
            units: list[AccessUnit] = []
            for packet in client.receive(min(frozen_at, report_at, assembly.deadline)):
                now = time.monotonic()
                if packet.kind == "rtp":
                    units += assembly.rtp(packet.data, now)
                else:
                    assembly.rtcp(packet.data, now)
            now = time.monotonic()
            units += assembly.tick(now)
            if now >= report_at:
                client.report(assembly.report(now))
                report_at = now + REPORT_EVERY_S
            for unit in units:
                alive = now
                for frame, note in self._decode(decoder, unit, track):
                    whole = deinterlacer.push(frame, note) if deinterlacer else [(frame, note)]
                    for each, (of, spent) in whole:
                        if not self._seq:
                            self._on_state("live")
                        yield self._frame(each, of, spent, track.clock_rate)
                        # Whoever takes late has kept this thread from reading.
                        alive = whole_at = now = time.monotonic()

    def _decode(
        self, decoder: av.VideoCodecContext, unit: AccessUnit, track: VideoTrack
    ) -> Iterator[tuple[av.VideoFrame, tuple[AccessUnit, int]]]:
        if unit.size:
            self._check_size(*unit.size)
        began = time.monotonic_ns()
        self._damaged += not unit.complete
        if not unit.complete and unit.data and not self._holding:
            self._holding = True
            yield from self._decoded(decoder, None, unit, began)  # those before it are whole
        if self._holding and not (unit.key and unit.complete):
            self._held += 1
            return
        data = unit.data
        if self._holding:
            decoder.flush_buffers()
            self._holding = False
            if not self._seq:
                data = annex_b(track.parameter_sets) + data
        packet = av.Packet(data)
        packet.pts, packet.time_base, packet.opaque = unit.rtp_time, Fraction(1, track.clock_rate), unit
        yield from self._decoded(decoder, packet, unit, began)

    def _decoded(
        self, decoder: av.VideoCodecContext, packet: av.Packet[Any] | None, unit: AccessUnit, began: int
    ) -> Iterator[tuple[av.VideoFrame, tuple[AccessUnit, int]]]:
        try:
            frames = decoder.decode(packet)
        except av.FFmpegError:
            self._damaged += 1
            self._held += 1
            self._holding = True
            return
        spent = time.monotonic_ns() - began
        for frame in frames:
            self._check_size(frame.width, frame.height)
            if frame.is_corrupt:
                self._damaged += 1
                self._held += 1
                self._holding = True
                continue
            yield frame, (frame.opaque if isinstance(frame.opaque, AccessUnit) else unit, spent)

    def _frame(self, frame: av.VideoFrame, unit: AccessUnit, spent: int, rate: int) -> Frame:
        arrived = time.monotonic_ns()
        pixels = to_rgb(frame)
        seq, self._seq = self._seq, self._seq + 1
        return Frame(
            stream=self._stream,
            seq=seq,
            pts=unit.rtp_time,
            time_base=Fraction(1, rate),
            captured_ns=unit.captured_ns or unit.arrived_unix_ns,
            clock="sender" if unit.captured_ns else "arrival",
            arrived_ns=arrived,
            pixels=pixels,
            colour=colour_of(frame),
            sample_aspect_ratio=getattr(frame, "sample_aspect_ratio", None) or Fraction(1),
            rotation=frame.rotation,
            spent_ns={"decode": spent, "convert": time.monotonic_ns() - arrived},
            origin=frame,
        )

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._options.max_pixels:
            raise SourceError(
                f"{self._address}: a frame must have at most {self._options.max_pixels} pixels, got {width}x{height}; "
                "choose a smaller stream of this camera, or raise max_pixels",
                lasting=True,
            )


def _decoder(track: VideoTrack) -> av.VideoCodecContext:
    decoder = av.VideoCodecContext.create(track.codec, "r")
    # Each frame thread would delay by a frame; more threads a camera would starve the other cameras.
    decoder.thread_type, decoder.thread_count = "SLICE", 1
    decoder.flags |= Flags.copy_opaque
    return decoder

"""From RTP and RTCP packets to access units with their times.

Knows no sockets; time is what it is told. An access unit ends at the marker bit of its last packet, a frame earlier
than where the next one shows that it has ended. For cameras that set no marker the next timestamp has to do, and for
those that set it on every slice, too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .errors import RtpError, RtspError
from .jpeg import JpegPayload
from .payload import nal_payload
from .rtcp import Bye, Reception, SenderClock, SenderReport, parse_rtcp
from .rtp import ReorderBuffer, RtpPacket, TimeUnwrapper, parse_rtp
from .sdp import VideoTrack

REPORT_EVERY_S: Final = 5.0
REORDER_WAIT_S: Final = 0.1


@dataclass(frozen=True)
class AccessUnit:
    """What makes one picture.

    number: counts from 0; a gap is an access unit that was passed over.
    data: Annex B, or a JPEG file.
    key: decoding can begin here.
    complete: nothing of it is missing, as far as can be known. What is missing between two shows in the second.
    rtp_time: when it is to be shown, in units of the track's clock rate; never wraps, but may jump.
    captured_ns: Unix time by the sender's clock; None if it does not tell.
    arrived_ns: monotonic clock, arrived_unix_ns: wall clock when its last packet was there.
    size: coded width and height, where it says so.
    """

    number: int
    data: bytes
    key: bool
    complete: bool
    rtp_time: int
    captured_ns: int | None
    arrived_ns: int
    arrived_unix_ns: int
    size: tuple[int, int] | None


class Assembly:
    """Puts the packets of a track together. All times are of the monotonic clock, in seconds.

    reorder: packets may come in another order than they were sent in.
    """

    def __init__(self, track: VideoTrack, *, reorder: bool) -> None:
        self.malformed = 0
        """Packets that made no sense."""
        self._track = track
        self._packets = ReorderBuffer(REORDER_WAIT_S if reorder else 0)
        self._payload = JpegPayload() if track.codec == "mjpeg" else nal_payload(track)
        self._unwrap = TimeUnwrapper()
        self._clock = SenderClock(track.clock_rate)
        self._reception = Reception(track.clock_rate, self._packets)
        self._own_ssrc = random.getrandbits(32)
        self._timestamp: int | None = None  # of the access unit that is being put together
        self._ended: int | None = None  # timestamp of the last one that a marker ended
        self._trust_marker = True
        self._count = 0

    @property
    def lost(self) -> int:
        """Packets that never came."""
        return self._packets.lost

    @property
    def deadline(self) -> float:
        """When `tick` has something to do; infinity for never."""
        return self._packets.deadline

    def rtp(self, data: bytes, now: float) -> Iterator[AccessUnit]:
        """Take in a packet that arrived at `now`; yields the access units that end with it."""
        try:
            packet = parse_rtp(data)
        except RtpError:
            self.malformed += 1
            return
        if packet.payload_type != self._track.payload_type:
            return
        self._reception.note_packet(packet, now)
        source = self._packets.ssrc
        for each, gap in self._packets.push(packet, now):
            if self._packets.ssrc != source:
                if source is not None:  # another sender; what the first one said before its first packet holds
                    self._clock.forget()
                source = self._packets.ssrc
            yield from self._cut(each, gap, now)

    def tick(self, now: float) -> Iterator[AccessUnit]:
        """Give up on packets that were waited for long enough."""
        for packet, gap in self._packets.release(now):
            yield from self._cut(packet, gap, now)

    def rtcp(self, data: bytes, now: float) -> None:
        """Take in an RTCP packet; RtspError when the camera says that it ends."""
        try:
            for item in parse_rtcp(data):
                ours = self._packets.ssrc
                if isinstance(item, SenderReport) and ours in (None, item.ssrc):
                    self._clock.note(item, now)
                    self._reception.note_report(item, now)
                elif isinstance(item, Bye) and ours in item.ssrcs:
                    raise RtspError("the server ended the stream (RTCP BYE)")
        except RtpError:
            self.malformed += 1

    def report(self, now: float) -> bytes:
        """What to tell the sender of reception, every REPORT_EVERY_S."""
        return self._reception.report(self._own_ssrc, now)

    def _cut(self, packet: RtpPacket, gap: bool, now: float) -> Iterator[AccessUnit]:
        payload = self._payload
        if gap:
            payload.damage()
        if self._timestamp is not None and packet.timestamp != self._timestamp and payload.has_picture:
            yield self._unit(now)
            if gap:  # its beginning may be missing as well
                payload.damage()
        self._timestamp = packet.timestamp
        try:
            if packet.payload:
                payload.add(packet.payload)
        except RtpError:
            self.malformed += 1
            payload.damage()
        if packet.marker and payload.has_picture and self._trust_marker:
            yield self._unit(now)
            self._ended = packet.timestamp

    def _unit(self, now: float) -> AccessUnit:
        assert self._timestamp is not None
        picture = self._payload.take()
        if not picture.whole_start and self._timestamp == self._ended:
            self._trust_marker = False  # this is the rest of a picture that a marker cut in two
        self._count += 1
        return AccessUnit(
            self._count - 1,
            picture.data,
            picture.key,
            picture.intact,
            self._unwrap(self._timestamp),
            self._clock.at(self._timestamp, now),
            int(now * 1e9),
            time.time_ns(),
            picture.size,
        )

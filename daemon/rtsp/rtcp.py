"""RTCP: the camera's clock from its sender reports, and reports of reception, without which some cameras stop.

Knows no sockets. RFC 3550, chapter 6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .errors import RtpError
from .rtp import ReorderBuffer, RtpPacket, difference

_SENDER_REPORT: Final = 200
_RECEIVER_REPORT: Final = 201
_DESCRIPTION: Final = 202
_BYE: Final = 203
_NTP_TO_UNIX_S: Final = 2_208_988_800
_MOST_DRIFT_S: Final = 30
_CNAME: Final = b"deblurd"


@dataclass(frozen=True)
class SenderReport:
    """At `unix_ns` of the sender's clock its RTP time was `timestamp`. ntp: the middle 32 bits, for reports back."""

    ssrc: int
    unix_ns: int
    timestamp: int
    ntp: int


@dataclass(frozen=True)
class Bye:
    """The sources of `ssrcs` have ended."""

    ssrcs: tuple[int, ...]


def parse_rtcp(data: bytes) -> Iterator[SenderReport | Bye]:
    """What of a compound packet matters here; RtpError if it is none."""
    while data:
        if len(data) < 4 or data[0] >> 6 != 2:
            raise RtpError(f"an RTCP packet must have 4 bytes and version 2, got {data[:4].hex()}")
        count, kind, size = data[0] & 0x1F, data[1], 4 + 4 * int.from_bytes(data[2:4], "big")
        body = data[4:size]
        if len(data) < size:
            raise RtpError(f"an RTCP packet must have {size} bytes as it says, got {len(data)}")
        if kind == _SENDER_REPORT:
            if len(body) < 24:
                raise RtpError(f"a sender report must have 28 bytes, got {size}")
            ssrc, seconds, fraction, timestamp = struct.unpack_from(">IIII", body)
            unix_ns = (seconds - _NTP_TO_UNIX_S) * 1_000_000_000 + (fraction * 1_000_000_000 >> 32)
            yield SenderReport(ssrc, unix_ns, timestamp, (seconds & 0xFFFF) << 16 | fraction >> 16)
        elif kind == _BYE:
            yield Bye(tuple(int.from_bytes(body[at : at + 4], "big") for at in range(0, min(4 * count, len(body)), 4)))
        data = data[size:]


class SenderClock:
    """When a frame was captured, by the camera's clock."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._report: SenderReport | None = None
        self._reported = 0.0

    def note(self, report: SenderReport, now: float) -> None:
        """Go by this report from now on. Cameras that know no time say nothing, or seconds since they started."""
        self._report = report if report.unix_ns > 0 else None
        self._reported = now

    def forget(self) -> None:
        """The sender began anew."""
        self._report = None

    def at(self, timestamp: int, now: float) -> int | None:
        """Unix time in ns of an RTP timestamp that arrived at `now`.

        None without a report, and where the timestamps jumped since the last one.
        """
        if self._report is None:
            return None
        elapsed = difference(timestamp, self._report.timestamp, 32)
        if abs(elapsed / self._rate - (now - self._reported)) > _MOST_DRIFT_S:
            return None
        return self._report.unix_ns + elapsed * 1_000_000_000 // self._rate


class Reception:
    """Statistics of what arrived, as a receiver report wants them."""

    def __init__(self, rate: int, packets: ReorderBuffer) -> None:
        self._rate, self._packets = rate, packets
        self._transit: float | None = None
        self._jitter = 0.0
        self._last = (0, 0)
        self._ntp, self._reported = 0, 0.0

    def note_packet(self, packet: RtpPacket, now: float) -> None:
        """Count the jitter of a packet, as RFC 3550 A.8 does."""
        transit = now * self._rate - packet.timestamp
        if self._transit is not None:
            apart = abs(transit - self._transit)
            if apart < self._rate:  # else the clock jumped
                self._jitter += (apart - self._jitter) / 16
        self._transit = transit

    def note_report(self, report: SenderReport, now: float) -> None:
        self._ntp, self._reported = report.ntp, now

    def report(self, ssrc: int, now: float) -> bytes:
        """A receiver report and the source description that must follow it, from `ssrc`."""
        packets, blocks = self._packets, b""
        if packets.ssrc is not None and packets.expected is not None:
            lost, expected = packets.lost - self._last[0], packets.lost + packets.received - self._last[1]
            self._last = packets.lost, packets.lost + packets.received
            share = min(255, max(0, 256 * lost // expected)) if expected > 0 else 0
            since = round((now - self._reported) * 65536) if self._ntp else 0
            blocks = struct.pack(
                ">IIIIII",
                packets.ssrc,
                share << 24 | min(packets.lost, 0x7FFFFF),
                packets.expected - 1 & 0xFFFFFFFF,
                min(int(self._jitter), 0xFFFFFFFF),
                self._ntp,
                min(since, 0xFFFFFFFF),
            )
        words = 1 + len(blocks) // 4
        head = struct.pack(">BBHI", 0x80 | len(blocks) // 24, _RECEIVER_REPORT, words, ssrc)
        return head + blocks + _description(ssrc)


def _description(ssrc: int) -> bytes:
    item = bytes([1, len(_CNAME)]) + _CNAME
    chunk = struct.pack(">I", ssrc) + item + bytes(4 - len(item) % 4)  # at least one zero ends the list
    return struct.pack(">BBH", 0x81, _DESCRIPTION, len(chunk) // 4) + chunk

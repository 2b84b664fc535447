"""RTP packets as bytes, put back in order, with the lost ones counted.

Knows no codec and no sockets. RFC 3550.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .errors import RtpError

_VERSION: Final = 2
_MAX_DROPOUT: Final = 3000
_MAX_MISORDER: Final = 100
_START_WAIT_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class RtpPacket:
    """marker: by the payload formats of video, the last packet of an access unit."""

    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    marker: bool
    payload: bytes


def parse_rtp(data: bytes) -> RtpPacket:
    """A packet from its bytes; RtpError if they are none."""
    if len(data) < 12 or data[0] >> 6 != _VERSION:
        raise RtpError(f"an RTP packet must have 12 bytes and version 2, got {len(data)} bytes {data[:2].hex()}")
    begin, end = 12 + 4 * (data[0] & 0x0F), len(data)
    if data[0] & 0x10:  # an extension
        begin += 4 + 4 * int.from_bytes(data[begin + 2 : begin + 4], "big")
    if data[0] & 0x20:  # padding, whose last byte is its length
        end -= data[-1]
    if begin > end:
        raise RtpError(f"an RTP packet's header and padding must fit its {len(data)} bytes")
    return RtpPacket(
        payload_type=data[1] & 0x7F,
        sequence=int.from_bytes(data[2:4], "big"),
        timestamp=int.from_bytes(data[4:8], "big"),
        ssrc=int.from_bytes(data[8:12], "big"),
        marker=bool(data[1] & 0x80),
        payload=bytes(data[begin:end]),
    )


def difference(value: int, other: int, bits: int) -> int:
    """`value - other` of numbers that wrap, nearest to 0."""
    half = 1 << bits - 1
    return (value - other + half) % (1 << bits) - half


class TimeUnwrapper:
    """Makes 32-bit timestamps into ones that never wrap. They may go back: B-frames do, and clocks that are set."""

    def __init__(self) -> None:
        self._last: int | None = None

    def __call__(self, timestamp: int) -> int:
        last = timestamp if self._last is None else self._last
        self._last = last + difference(timestamp, last, 32)
        return self._last


class ReorderBuffer:
    """Gives packets in the order of their sequence numbers, each once.

    wait_s: how long a missing packet is waited for; with 0, as for TCP, there is no waiting at all.
    most: packets that are kept meanwhile.

    A packet comes with whether there is a gap before it: packets that were lost, or a sender that began anew.
    """

    def __init__(self, wait_s: float, most: int = 512) -> None:
        self.lost = 0
        self.received = 0
        self.ssrc: int | None = None
        self._wait_s, self._most = wait_s, most
        self._next: int | None = None  # counts on over 16 bits
        self._base = 0  # what sequence numbers are compared with before there is a next
        self._waiting: dict[int, tuple[RtpPacket, float]] = {}
        self._stranger: RtpPacket | None = None
        self._broken = False

    @property
    def expected(self) -> int | None:
        """The sequence number that comes next, counted on over 16 bits."""
        return self._next

    @property
    def deadline(self) -> float:
        """When `release` has something to do, by the clock of `push`'s now; infinity for never."""
        if not self._waiting:
            return math.inf
        wait_s = self._wait_s if self._next is not None else min(self._wait_s, _START_WAIT_S)
        return min(arrived for _, arrived in self._waiting.values()) + wait_s

    def push(self, packet: RtpPacket, now: float) -> Iterator[tuple[RtpPacket, bool]]:
        """Take a packet in; yields those that are in order now, each with whether a gap is before it."""
        if self.ssrc is None:
            self.ssrc, self._base = packet.ssrc, packet.sequence
        base = self._next if self._next is not None else self._base
        distance = difference(packet.sequence, base & 0xFFFF, 16)
        if packet.ssrc != self.ssrc or not -_MAX_MISORDER <= distance < _MAX_DROPOUT:
            yield from self._doubt(packet, now)
            return
        self._stranger = None
        number = base + distance
        if (self._next is not None and distance < 0) or number in self._waiting:
            return  # a duplicate, or too late
        self.received += 1
        self._waiting[number] = packet, now
        yield from self._in_order()
        if len(self._waiting) > self._most:
            yield from self._over_the_gap()
        yield from self.release(now)

    def release(self, now: float) -> Iterator[tuple[RtpPacket, bool]]:
        """The packets that have waited long enough for those before them."""
        while self._waiting and now >= self.deadline:
            yield from self._over_the_gap()

    def _doubt(self, packet: RtpPacket, now: float) -> Iterator[tuple[RtpPacket, bool]]:
        """A packet far from the others is a sender that began anew if a second one follows it, else a stray."""
        first, self._stranger = self._stranger, packet
        if first is None or packet.ssrc != first.ssrc or difference(packet.sequence, first.sequence, 16) != 1:
            return
        while self._waiting:
            yield from self._over_the_gap()
        self.ssrc, self._next, self._stranger, self._broken = first.ssrc, first.sequence, None, True
        yield from self.push(first, now)
        yield from self.push(packet, now)

    def _in_order(self) -> Iterator[tuple[RtpPacket, bool]]:
        while self._next is not None and self._next in self._waiting:
            packet, _ = self._waiting.pop(self._next)
            self._next += 1
            broken, self._broken = self._broken, False
            yield packet, broken

    def _over_the_gap(self) -> Iterator[tuple[RtpPacket, bool]]:
        nearest = min(self._waiting)
        if self._next is not None:
            self.lost += nearest - self._next
            self._broken = True
        self._next = nearest
        yield from self._in_order()

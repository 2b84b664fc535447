"""One track of one client of the test server: what is sent, when, and with which faults.

Knows no requests and no connections; needs the standard library only.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Protocol

from rtp_payloads import Clip, Feed, media_lines, parameter_sets, payload_type, payloads

NTP_EPOCH = 2208988800
BURST = 16
BURST_PAUSE_S = 0.001


@dataclass(frozen=True)
class Video:
    """A track of frames.

    switch: from this frame of the session on, another feed of the same rate, e.g. of another size.
    first_sequence, first_timestamp: where RTP begins to count, e.g. just before it wraps.
    announce_sets: parameter sets are in the SDP and not only in the stream.
    aggregate: small NAL units share a packet.
    absolute_control: the SDP says the track's whole address and not only its end.
    """

    feed: Feed
    switch: tuple[int, Feed] | None = None
    first_sequence: int = 1000
    first_timestamp: int = 90_000
    announce_sets: bool = True
    announce_rate: bool = True
    aggregate: bool = True
    absolute_control: bool = False


@dataclass(frozen=True)
class Audio:
    """A track of silence, PCMU."""


@dataclass(frozen=True)
class Unknown:
    """A track that is announced as something nobody can decode, and of which nothing is sent."""

    media: str = "video"
    codec: str = "VP99"


Track = Video | Audio | Unknown


@dataclass
class Faults:
    """What goes wrong; every field may be changed while the server runs.

    loss, corrupt: shares of the RTP packets that are lost, or have three flipped bits.
    reorder, duplicate: shares of the packets that come `reorder_by` packets too late, or twice; UDP only.
    only: the frames of each session whose packets may suffer these; None means all but the first `spare`.
    frozen: no packet is sent, and connections stay. When it ends, the stream goes on with the next frame, later.
    freeze_at, die_at, hang_up_at: the frame of the session that is not sent any more: time stands still, the server
    dies, or only this client's connection ends.
    stuck_at: the frame instead of which half a packet is sent, and nothing after it; TCP only.
    silent: connections are accepted, and nothing is ever said. mute: methods that are never answered.
    status: answers by method instead of what is asked for, e.g. {"DESCRIBE": 404}.
    refuse: transports that are answered with 461, "tcp" or "udp".
    clock_offset_s: the camera's clock minus the true one. report_every_s: between sender reports; None sends none.
    timestamp_jump: added to the RTP timestamps of all frames from now on; sender reports follow it.
    goodbye_at: the frame before which RTCP says BYE; nothing is sent after it.
    """

    loss: float = 0.0
    corrupt: float = 0.0
    only: frozenset[int] | None = None
    spare: int = 3
    seed: int = 1
    reorder: float = 0.0
    reorder_by: int = 1
    duplicate: float = 0.0
    frozen: bool = False
    freeze_at: int | None = None
    die_at: int | None = None
    hang_up_at: int | None = None
    stuck_at: int | None = None
    silent: bool = False
    mute: frozenset[str] = frozenset()
    status: Mapping[str, int] = field(default_factory=dict)
    refuse: frozenset[str] = frozenset()
    clock_offset_s: float = 0.0
    report_every_s: float | None = 5.0
    timestamp_jump: int = 0
    goodbye_at: int | None = None

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        whole = Faults()
        for each in fields(self):
            setattr(self, each.name, getattr(whole, each.name))


@dataclass(frozen=True)
class Sent:
    """A frame that was sent.

    client: counts connections from 0. index: counts the session's frames in sending order. number: what the bar code
    says. timestamp: of RTP. captured_s: when it was filmed by the camera's clock, Unix seconds. left_s:
    time.monotonic() when its last packet left. damaged: packets of it that were lost or changed.
    """

    client: int
    path: str
    track: int
    index: int
    number: int
    key: bool
    timestamp: int
    captured_s: float
    left_s: float
    damaged: int


class Wire(Protocol):
    """Takes RTP and, as `control`, RTCP packets. `orderly`: what it takes arrives, once and in order."""

    orderly: bool

    def send(self, packet: bytes, *, control: bool = False) -> None: ...

    def send_half(self) -> None:
        """Send a packet of which the second half never comes, where packets are no units of their own."""

    def received(self) -> list[bytes]:
        """RTCP packets of the client since the last call."""

    def close(self) -> None: ...


class Interleaved:
    """RTP and RTCP within the connection, where `send_all` writes; what the client sends there is read elsewhere."""

    orderly = True

    def __init__(self, send_all: Callable[[bytes], None], channel: int) -> None:
        self._send_all, self._channel = send_all, channel

    def send(self, packet: bytes, *, control: bool = False) -> None:
        self._send_all(struct.pack(">cBH", b"$", self._channel + control, len(packet)) + packet)

    def send_half(self) -> None:
        self._send_all(struct.pack(">cBH", b"$", self._channel, 1000) + bytes(500))

    def received(self) -> list[bytes]:
        return []

    def close(self) -> None:
        pass


class Datagrams:
    """RTP and RTCP on a pair of UDP ports: `port` and the next."""

    orderly = False

    def __init__(self, host: str, client_port: int) -> None:
        self._host, self._client_port = host, client_port
        self._sockets = _udp_pair()
        self.port = self._sockets[0].getsockname()[1]
        self._burst = 0
        self._never = threading.Event()

    def send(self, packet: bytes, *, control: bool = False) -> None:
        self._sockets[control].sendto(packet, (self._host, self._client_port + control))
        # A large frame at once would overflow the buffer of a client's socket: cameras are slower than the loopback.
        self._burst += 1
        if self._burst % BURST == 0:
            self._never.wait(BURST_PAUSE_S)

    def send_half(self) -> None:
        pass

    def received(self) -> list[bytes]:
        packets = []
        try:
            while True:
                packets.append(self._sockets[1].recv(2048, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return packets

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def _udp_pair() -> tuple[socket.socket, socket.socket]:
    """Sockets on an even port and the next."""
    while True:
        even, odd = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        even.bind(("127.0.0.1", 0))
        port = even.getsockname()[1]
        try:
            if port % 2 == 0:
                odd.bind(("127.0.0.1", port + 1))
                return even, odd
        except OSError:
            pass
        even.close()
        odd.close()


def described(track: Track, control: str) -> list[str]:
    """What the SDP says of a track; `control` is its address or the end of it."""
    if isinstance(track, Audio):
        lines = ["m=audio 0 RTP/AVP 0", "a=rtpmap:0 PCMU/8000"]
    elif isinstance(track, Unknown):
        lines = [f"m={track.media} 0 RTP/AVP 97", f"a=rtpmap:97 {track.codec}/90000"]
    else:
        feed = track.feed
        sets = parameter_sets(feed.open()(0).data, feed.codec) if track.announce_sets and feed.codec != "mjpeg" else []
        lines = media_lines(feed.codec, sets)
        if track.announce_rate:
            lines.append(f"a=framerate:{float(feed.rate):g}")
    return [*lines, f"a=control:{control}"]


class Sender:
    """Sends a track over `wire`.

    due_s: time.monotonic() of the next packet, infinite before `start`. stuck: half a packet was sent.
    """

    def __init__(self, track: Track, wire: Wire, faults: Faults, *, client: int, path: str, number: int) -> None:
        self.index = 0
        self.due_s = float("inf")
        self.stuck = False
        self.ssrc = 0x1234AB00 + number
        self._track, self._wire, self._faults = track, wire, faults
        self._client, self._path, self._number = client, path, number
        self._random = random.Random(f"{faults.seed} {number}")
        self._sequence = track.first_sequence if isinstance(track, Video) else 1
        self._begun_s = self._begun_unix_s = self._paused_s = 0.0
        self._packets = self._octets = 0
        self._report_due_s, self._reported = 0.0, (0.0, 0)
        self._late: list[tuple[int, bytes]] = []  # packets to come, and how many they wait for

    def start(self) -> str:
        """Begin to count time; returns what RTP-Info says."""
        self._begun_s, self._begun_unix_s = time.monotonic(), time.time()
        if isinstance(self._track, Video):
            self._unit = self._track.feed.open()
            self.due_s = self._begun_s + self._track.feed.delay / float(self._track.feed.rate)
        elif isinstance(self._track, Audio):
            self.due_s = self._begun_s
        return f"seq={self._sequence};rtptime={self._timestamp(0.0)}"

    def send_next(self) -> Sent | None:
        """Send what is due; returns which frame it was, if it was one."""
        faults = self._faults
        if isinstance(self._track, Audio):
            if not faults.frozen:
                self._send_packet(struct.pack(">BB", 0x80, 0), self.index * 160, b"\xff" * 160)
            self.index += 1
            self.due_s = self._begun_s + self.index * 0.02
            return None
        assert isinstance(self._track, Video)
        if faults.goodbye_at is not None and self.index >= faults.goodbye_at:
            # RTCP goes in compounds that begin with a report, be it empty.
            report = struct.pack(">BBHI", 0x80, 201, 1, self.ssrc)
            self._wire.send(report + struct.pack(">BBHI", 0x81, 203, 1, self.ssrc), control=True)
            self.due_s = float("inf")
            return None
        if faults.frozen or (faults.freeze_at is not None and self.index >= faults.freeze_at):
            # Time goes on, and frames do not.
            period_s = 1 / float(self._track.feed.rate)
            self._paused_s += period_s
            self.due_s += period_s
            return None
        if faults.stuck_at is not None and self.index >= faults.stuck_at:
            self._wire.send_half()
            self.due_s, self.stuck = float("inf"), True
            return None
        return self._send_frame(self._track)

    def _send_frame(self, track: Video) -> Sent:
        feed, first = track.feed, 0
        if track.switch and self.index >= track.switch[0]:
            first, feed = track.switch
            if self.index == first:
                self._unit = feed.open()
        unit = self._unit(self.index - first)
        filmed_s = float(Fraction(first + _shown(feed, self.index - first, unit.number)) / feed.rate) + self._paused_s
        timestamp = self._timestamp(filmed_s)
        self._report(filmed_s)
        spared = self.index < self._faults.spare if self._faults.only is None else self.index not in self._faults.only
        damaged = 0
        pieces = payloads(unit.data, feed.codec, aggregate=track.aggregate)
        for place, piece in enumerate(pieces):
            marker = 0x80 if place == len(pieces) - 1 else 0
            head = struct.pack(">BB", 0x80, marker | payload_type(feed.codec))
            damaged += self._send_packet(head, timestamp, piece, spared=spared)
        sent = Sent(
            client=self._client,
            path=self._path,
            track=self._number,
            index=self.index,
            number=unit.number,
            key=unit.key,
            timestamp=timestamp,
            captured_s=self._begun_unix_s + filmed_s + self._faults.clock_offset_s,
            left_s=time.monotonic(),
            damaged=damaged,
        )
        self.index += 1
        self.due_s = self._begun_s + self._paused_s + (self.index + feed.delay) / float(feed.rate)
        return sent

    def _timestamp(self, filmed_s: float) -> int:
        first = self._track.first_timestamp if isinstance(self._track, Video) else 0
        return (first + round(filmed_s * 90_000) + self._faults.timestamp_jump) & 0xFFFFFFFF

    def _report(self, filmed_s: float) -> None:
        """A sender report when it is time for one, and at once after the clock was set or the timestamps jumped."""
        faults = self._faults
        clock = (faults.clock_offset_s, faults.timestamp_jump)
        if faults.report_every_s is None or (filmed_s < self._report_due_s and clock == self._reported):
            return
        self._report_due_s, self._reported = filmed_s + faults.report_every_s, clock
        ntp_s = self._begun_unix_s + filmed_s + faults.clock_offset_s + NTP_EPOCH
        clocks = (int(ntp_s), int(ntp_s % 1 * 2**32), self._timestamp(filmed_s))
        report = struct.pack(">BBHIIIIII", 0x80, 200, 6, self.ssrc, *clocks, self._packets, self._octets)
        name = struct.pack(">BBHIBB", 0x81, 202, 3, self.ssrc, 1, 3) + b"cam\x00\x00\x00"
        self._wire.send(report + name, control=True)

    def _send_packet(self, head: bytes, timestamp: int, payload: bytes, *, spared: bool = True) -> bool:
        """Send a packet through the faults; returns whether it was lost or changed."""
        faults, chance = self._faults, self._random.random
        fixed = head + struct.pack(">HII", self._sequence, timestamp & 0xFFFFFFFF, self.ssrc)
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._packets += 1
        self._octets += len(payload)
        if not spared and chance() < faults.loss:
            return True
        changed = not spared and chance() < faults.corrupt
        packet = fixed + (_flipped(payload, self._random) if changed else payload)
        fair = spared or self._wire.orderly
        if not fair and chance() < faults.reorder:
            self._late.append((faults.reorder_by, packet))
            return changed
        self._wire.send(packet)
        if not fair and chance() < faults.duplicate:
            self._wire.send(packet)
        waiting, self._late = self._late, []
        for left, late in waiting:
            if left > 1:
                self._late.append((left - 1, late))
            else:
                self._wire.send(late)
        return changed


def _shown(feed: Feed, index: int, number: int) -> int:
    """The place in display order of a frame: the clip's number, counted on when the clip begins anew."""
    return index // len(feed.units) * len(feed.units) + number if isinstance(feed, Clip) else index


def _flipped(payload: bytes, source: random.Random) -> bytes:
    """Three bits are wrong, none of them in the headers."""
    changed = bytearray(payload)
    for _ in range(3):
        changed[source.randrange(min(8, len(payload) - 1), len(payload))] ^= 1 << source.randrange(8)
    return bytes(changed)

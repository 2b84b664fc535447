"""An RTSP 1.0 server for tests, on 127.0.0.1, with faults on demand.

Knows no encoder: it serves what `live_clips` makes. Needs the standard library only.

    with RtspServer(make_clip()) as server:
        ...                                 # read server.url
        server.wait_for_frames(30)
        server.faults.frozen = True         # any fault may be changed while it runs
        server.die(); server.start()        # comes back on the same port

Each client has one thread, which answers its requests and sends its packets.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import secrets
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import TracebackType
from typing import Literal, NamedTuple, Self
from urllib.parse import quote, urlsplit

from rtp_payloads import Clip, Feed, LiveFeed, media_lines, parameter_sets, payload_type, payloads

NTP_EPOCH = 2208988800
POLL_S = 0.02


@dataclass(frozen=True)
class Video:
    """A track of frames.

    switch: from this frame of the session on, another feed, e.g. of another size.
    first_sequence, first_timestamp: where RTP begins to count, e.g. just before it wraps.
    announce_sets: parameter sets are in the SDP and not only in the stream.
    """

    feed: Feed
    switch: tuple[int, Feed] | None = None
    first_sequence: int = 1000
    first_timestamp: int = 90_000
    announce_sets: bool = True
    announce_rate: bool = True
    aggregate: bool = True


@dataclass(frozen=True)
class Audio:
    """A track of silence, PCMU."""


@dataclass(frozen=True)
class Unknown:
    """A track that is announced as something nobody can decode, and of which nothing is sent."""

    media: str = "video"
    codec: str = "VP99"


Track = Video | Audio | Unknown


@dataclass(frozen=True)
class Auth:
    """Who may watch. With `qop`, Digest asks for qop=auth."""

    user: str
    password: str
    scheme: Literal["basic", "digest"] = "digest"
    qop: bool = False
    realm: str = "camera"


@dataclass
class Faults:
    """What goes wrong; every field may be changed while the server runs.

    loss, corrupt, reorder, duplicate: shares of the RTP packets; `corrupt` flips bits, the last two are for UDP only.
    spare: frames at the beginning of each session of which no packet is lost or changed.
    frozen: no packet is sent; connections stay. freeze_at, die_at: the frame that is not sent any more.
    silent: connections are accepted, and nothing is ever said. mute: methods that are never answered.
    status: answers by method instead of what is asked for, e.g. {"DESCRIBE": 404}.
    refuse: transports that are answered with 461, "tcp" or "udp".
    clock_offset_s: the camera's clock minus the true one. report_every_s: between sender reports; None sends none.
    timestamp_jump: added to the RTP timestamps of all frames from now on; sender reports follow it.
    """

    loss: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    spare: int = 3
    seed: int = 1
    frozen: bool = False
    freeze_at: int | None = None
    die_at: int | None = None
    silent: bool = False
    mute: frozenset[str] = frozenset()
    status: Mapping[str, int] = field(default_factory=dict)
    refuse: frozenset[str] = frozenset()
    clock_offset_s: float = 0.0
    report_every_s: float | None = 5.0
    timestamp_jump: int = 0


class Request(NamedTuple):
    method: str
    uri: str
    headers: Mapping[str, str]


class Sent(NamedTuple):
    """A frame that was sent.

    client: counts connections from 0. index: counts the session's frames in sending order. number: what the bar code
    says. captured_s: when it was filmed by the camera's clock, Unix seconds. left_s: time.monotonic() when its last
    packet left. damaged: packets of it that were lost or changed.
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


REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    454: "Session Not Found",
    461: "Unsupported Transport",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class RtspServer:
    """Serves tracks by path; a single feed or list of tracks is served at /cam. `tls` makes it RTSPS."""

    def __init__(
        self,
        served: Feed | Sequence[Track] | Mapping[str, Sequence[Track]],
        *,
        auth: Auth | None = None,
        faults: Faults | None = None,
        tls: ssl.SSLContext | None = None,
        session_timeout_s: float = 60,
    ) -> None:
        if isinstance(served, Clip | LiveFeed):
            served = [Video(served)]
        self.mounts = dict(served) if isinstance(served, Mapping) else {"/cam": served}
        self.auth, self.tls, self.session_timeout_s = auth, tls, session_timeout_s
        self.faults = faults or Faults()
        self.nonce = secrets.token_hex(8)
        self.port = 0
        self.sent: list[Sent] = []
        self.requests: list[Request] = []
        self.changed = threading.Condition()
        self._clients: list[_Client] = []
        self._accepted = 0
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None

    def start(self) -> int:
        """Listen, on the port of last time if there was one; returns the port."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self._listener.settimeout(POLL_S)
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), name="rtsp-accept")
        self._acceptor.start()
        return self.port

    def die(self) -> None:
        """Close the listener and every connection; `start` brings the server back."""
        listener, self._listener = self._listener, None
        if listener and self._acceptor:
            self._acceptor.join()
            listener.close()
        with self.changed:
            clients = list(self._clients)
        for client in clients:
            client.hang_up()
        for client in clients:
            if client is not threading.current_thread():
                client.join()

    close = die

    def url(self, path: str = "/cam", *, host: str = "127.0.0.1") -> str:
        """The address, with user and password percent-encoded where there are any."""
        scheme = "rtsps" if self.tls else "rtsp"
        login = f"{quote(self.auth.user, safe='')}:{quote(self.auth.password, safe='')}@" if self.auth else ""
        return f"{scheme}://{login}{host}:{self.port}{path}"

    @property
    def connected(self) -> int:
        """Open connections."""
        return len(self._clients)

    @property
    def playing(self) -> int:
        """Clients that are being sent packets, or would be without faults."""
        return sum(client.playing for client in list(self._clients))

    def wait_for(self, claim: Callable[[], object], timeout_s: float = 30) -> None:
        """Wait until `claim` holds; it is looked at whenever a frame was sent, a request came or a client went."""
        with self.changed:
            assert self.changed.wait_for(claim, timeout_s), f"not within {timeout_s} s on {self.url()}"

    def wait_for_frames(self, count: int, timeout_s: float = 30) -> None:
        """Wait until `count` more frames were sent, to whomever."""
        goal = len(self.sent) + count
        self.wait_for(lambda: len(self.sent) >= goal, timeout_s)

    def wait_for_playing(self, count: int, timeout_s: float = 30) -> None:
        self.wait_for(lambda: self.playing == count, timeout_s)

    def wait_for_connected(self, count: int, timeout_s: float = 30) -> None:
        self.wait_for(lambda: self.connected == count, timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = _Client(self, connection, self._accepted)
            self._accepted += 1
            with self.changed:
                self._clients.append(client)
                self.changed.notify_all()
            client.start()

    def _gone(self, client: _Client) -> None:
        with self.changed:
            self._clients.remove(client)
            self.changed.notify_all()

    def _note(self, event: Sent | Request) -> None:
        with self.changed:
            if isinstance(event, Sent):
                self.sent.append(event)
            else:
                self.requests.append(event)
            self.changed.notify_all()


class _Client(threading.Thread):
    """One connection: reads requests, and sends packets when they are due."""

    def __init__(self, server: RtspServer, connection: socket.socket, number: int) -> None:
        super().__init__(name=f"rtsp-client-{number}")
        self.number, self.server = number, server
        self.playing = False
        self._connection = connection
        self._buffer = b""
        self._session = ""
        self._path = ""
        self._senders: dict[int, _Sender] = {}
        self._heard_s = time.monotonic()

    def hang_up(self) -> None:
        """From any thread: end the connection, whatever the thread waits for."""
        try:
            # Not the method of the TLS socket, which belongs to the thread that reads.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)
        except OSError:
            pass

    def run(self) -> None:
        try:
            if self.server.tls:
                self._connection = self.server.tls.wrap_socket(self._connection, server_side=True)
            while self._read():
                self._stream()
        except (OSError, ValueError):
            pass  # the client went, or spoke nonsense
        finally:
            for sender in self._senders.values():
                sender.close()
            self._connection.close()
            self.server._gone(self)

    def _read(self) -> bool:
        """Wait for requests no longer than until a packet is due, and answer them; False when the client is gone."""
        wait_s = self._wait_s()
        if not (isinstance(self._connection, ssl.SSLSocket) and self._connection.pending()):
            if not select.select([self._connection], [], [], wait_s)[0]:
                return True
        data = self._connection.recv(65536)
        if not data:
            return False
        self._buffer += data
        while not self.server.faults.silent and (request := self._request()):
            self._heard_s = time.monotonic()
            self.server._note(request)
            if not self._answer(request):
                return False
        return True

    def _wait_s(self) -> float | None:
        if not self.playing:
            return None
        due_s = min((sender.due_s for sender in self._senders.values()), default=float("inf"))
        return min(POLL_S, max(0.0, due_s - time.monotonic()))

    def _request(self) -> Request | None:
        """The next request in the buffer; RTCP that is interleaved with them is passed over."""
        while self._buffer[:1] == b"$":
            if len(self._buffer) < 4 or len(self._buffer) < (size := 4 + struct.unpack_from(">H", self._buffer, 2)[0]):
                return None
            self._buffer = self._buffer[size:]
        if b"\r\n\r\n" not in self._buffer:
            return None
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        method, uri, _ = first.split(" ", 2)
        pairs = [line.split(":", 1) for line in lines if ":" in line]
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        self._buffer = self._buffer[int(headers.get("content-length", 0)) :]
        return Request(method, uri, headers)

    def _answer(self, request: Request) -> bool:
        """Answer a request; False when it ends the connection."""
        faults = self.server.faults
        method = request.method
        if method in faults.mute:
            return True
        if method != "OPTIONS" and not self._allowed(request):
            self._reply(request, 401, [f"WWW-Authenticate: {self._challenge()}"])
        elif method in faults.status:
            self._reply(request, faults.status[method])
        elif method == "OPTIONS":
            self._reply(request, 200, ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"])
        elif method == "DESCRIBE":
            path = urlsplit(request.uri).path.rstrip("/")
            if path in self.server.mounts:
                self._reply(request, 200, [f"Content-Base: {request.uri}/"], self._describe(path))
            else:
                self._reply(request, 404)
        elif method == "SETUP":
            self._set_up(request)
        elif self._session != request.headers.get("session", "").split(";")[0]:
            self._reply(request, 454)
        elif method == "PLAY":
            info = ",".join(f"url={sender.uri};{sender.start()}" for sender in self._senders.values())
            self._reply(request, 200, [f"Session: {self._session}", "Range: npt=0.000-", f"RTP-Info: {info}"])
            self.playing = True
            self.server._note(request)
        elif method == "TEARDOWN":
            self._reply(request, 200)
            return False
        else:
            self._reply(request, 200 if method in ("GET_PARAMETER", "SET_PARAMETER") else 501)
        return True

    def _reply(self, request: Request, status: int, lines: Sequence[str] = (), body: bytes = b"") -> None:
        head = [f"RTSP/1.0 {status} {REASONS.get(status, 'Error')}", f"CSeq: {request.headers.get('cseq', 0)}", *lines]
        if body:
            head += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        self._connection.sendall("\r\n".join([*head, "", ""]).encode() + body)

    def _challenge(self) -> str:
        auth = self.server.auth
        assert auth
        if auth.scheme == "basic":
            return f'Basic realm="{auth.realm}"'
        return f'Digest realm="{auth.realm}", nonce="{self.server.nonce}"' + (', qop="auth"' if auth.qop else "")

    def _allowed(self, request: Request) -> bool:
        auth = self.server.auth
        if auth is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != auth.scheme:
            return False
        if auth.scheme == "basic":
            return given == base64.b64encode(f"{auth.user}:{auth.password}".encode()).decode()
        pairs = re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', given)
        said = {name: quoted or bare for name, quoted, bare in pairs}
        who = _md5(f"{auth.user}:{auth.realm}:{auth.password}")
        what = _md5(f"{request.method}:{request.uri}")
        middle = f"{said.get('nc')}:{said.get('cnonce')}:auth:" if auth.qop else ""
        response = _md5(f"{who}:{self.server.nonce}:{middle}{what}")
        wanted = {"username": auth.user, "uri": request.uri, "nonce": self.server.nonce, "response": response}
        return all(said.get(name) == value for name, value in wanted.items())

    def _describe(self, path: str) -> bytes:
        lines = ["v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=camera", "c=IN IP4 0.0.0.0", "t=0 0", "a=control:*"]
        for number, track in enumerate(self.server.mounts[path]):
            lines += [*_media(track), f"a=control:track{number}"]
        return ("\r\n".join(lines) + "\r\n").encode()

    def _set_up(self, request: Request) -> None:
        path, _, name = urlsplit(request.uri).path.rpartition("/")
        number = int(name.removeprefix("track")) if re.fullmatch(r"track\d+", name) else -1
        tracks = self.server.mounts.get(path, ())
        if not 0 <= number < len(tracks):
            self._reply(request, 404)
            return
        transport = request.headers.get("transport", "")
        over_tcp = "TCP" in transport
        ports = re.search(r"(interleaved|client_port)=(\d+)(?:-(\d+))?", transport)
        if ("tcp" if over_tcp else "udp") in self.server.faults.refuse or (not over_tcp and not ports):
            self._reply(request, 461)
            return
        first = int(ports[2]) if ports else 2 * number
        wire: _Interleaved | _Datagrams
        if over_tcp:
            wire = _Interleaved(self._connection, first)
            answer = f"RTP/AVP/TCP;unicast;interleaved={first}-{first + 1}"
        else:
            wire = _Datagrams(self._connection.getpeername()[0], first)
            answer = f"RTP/AVP;unicast;client_port={first}-{first + 1};server_port={wire.port}-{wire.port + 1}"
        self._session = self._session or secrets.token_hex(4)
        self._path = path
        self._senders[number] = _Sender(self, tracks[number], path, number, request.uri, wire)
        answer += f";ssrc={self._senders[number].ssrc:08X}"
        timeout = f"Session: {self._session};timeout={self.server.session_timeout_s:g}"
        self._reply(request, 200, [f"Transport: {answer}", timeout])

    def _stream(self) -> None:
        """Send what is due."""
        if not self.playing:
            return
        if time.monotonic() - self._heard_s > self.server.session_timeout_s:
            raise ConnectionAbortedError("the client sent no keep-alive")
        for sender in self._senders.values():
            if sender.due_s <= time.monotonic():
                sender.send_next()


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def _media(track: Track) -> list[str]:
    """What the SDP says of a track, but for its control address."""
    if isinstance(track, Audio):
        return ["m=audio 0 RTP/AVP 0", "a=rtpmap:0 PCMU/8000"]
    if isinstance(track, Unknown):
        return [f"m={track.media} 0 RTP/AVP 97", f"a=rtpmap:97 {track.codec}/90000"]
    feed = track.feed
    sets = parameter_sets(feed.open()(0).data, feed.codec) if track.announce_sets and feed.codec != "mjpeg" else []
    rate = [f"a=framerate:{float(feed.rate):g}"] if track.announce_rate else []
    return [*media_lines(feed.codec, sets), *rate]


class _Interleaved:
    """RTP and RTCP within the connection."""

    def __init__(self, connection: socket.socket, channel: int) -> None:
        self._connection, self._channel = connection, channel

    def send(self, packet: bytes, *, control: bool = False) -> None:
        self._connection.sendall(struct.pack(">cBH", b"$", self._channel + control, len(packet)) + packet)

    def close(self) -> None:
        pass


class _Datagrams:
    """RTP and RTCP on a pair of UDP ports."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._sockets = _udp_pair()
        self.port = self._sockets[0].getsockname()[1]

    def send(self, packet: bytes, *, control: bool = False) -> None:
        self._sockets[control].sendto(packet, (self._host, self._port + control))

    def close(self) -> None:
        for one in self._sockets:
            one.close()


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


class _Sender:
    """One track of one client: what to send, when, and with which faults."""

    def __init__(
        self, client: _Client, track: Track, path: str, number: int, uri: str, wire: _Interleaved | _Datagrams
    ) -> None:
        self.uri, self.ssrc = uri, 0x1234ABC0 + number
        self.due_s = float("inf")
        self._client, self._server, self._track, self._path, self._number = client, client.server, track, path, number
        self._wire = wire
        self._random = random.Random(f"{client.server.faults.seed} {number}")
        self._sequence = track.first_sequence if isinstance(track, Video) else 1
        self._index = 0
        self._begun_s = self._paused_s = 0.0
        self._packets = self._octets = 0
        self._report_due_s, self._reported = 0.0, (0.0, 0)
        self._held: bytes | None = None

    def start(self) -> str:
        """Begin to count time; returns what RTP-Info says."""
        self._begun_s = time.monotonic()
        self._begun_unix_s = time.time()
        if isinstance(self._track, Video):
            self._unit = self._track.feed.open()
            self._delay = self._track.feed.delay
            self.due_s = self._begun_s + self._delay / float(self._track.feed.rate)
        elif isinstance(self._track, Audio):
            self.due_s = self._begun_s
        return f"seq={self._sequence};rtptime={self._timestamp(0.0)}"

    def close(self) -> None:
        self._wire.close()

    def send_next(self) -> None:
        faults = self._server.faults
        if isinstance(self._track, Audio):
            self._send_audio()
        elif isinstance(self._track, Video):
            if faults.die_at is not None and self._index >= faults.die_at:
                self._server.die()
                raise ConnectionAbortedError("the server died")
            if faults.frozen or (faults.freeze_at is not None and self._index >= faults.freeze_at):
                # The camera films on, and sends none of it.
                period_s = 1 / float(self._track.feed.rate)
                self._paused_s += period_s
                self.due_s += period_s
                return
            self._send_frame(self._track)

    def _send_audio(self) -> None:
        if not self._server.faults.frozen:
            self._send_packet(struct.pack(">H", 0x8000), self._index * 160, b"\xff" * 160)
        self._index += 1
        self.due_s = self._begun_s + self._index * 0.02

    def _send_frame(self, track: Video) -> None:
        feed, first = track.feed, 0
        if track.switch and self._index >= track.switch[0]:
            first, feed = track.switch
            if self._index == first:
                self._unit = feed.open()
        unit = self._unit(self._index - first)
        # Frames are counted on when the clip begins anew.
        length = len(feed.units) if isinstance(feed, Clip) else 0
        rounds = (self._index - first) // length if length else 0
        shown = first + rounds * length + unit.number
        filmed_s = float(Fraction(shown) / feed.rate) + self._paused_s
        timestamp = self._timestamp(filmed_s)
        self._report(filmed_s)
        damaged = 0
        pieces = payloads(unit.data, feed.codec, aggregate=track.aggregate)
        for place, piece in enumerate(pieces):
            marker = 0x80 if place == len(pieces) - 1 else 0
            head = struct.pack(">BB", 0x80, marker | payload_type(feed.codec))
            damaged += self._send_packet(head, timestamp, piece, spared=self._index < self._server.faults.spare)
        offset_s = self._server.faults.clock_offset_s
        captured_s = self._begun_unix_s + filmed_s + offset_s
        sent = Sent(
            self._client.number,
            self._path,
            self._number,
            self._index,
            unit.number,
            unit.key,
            timestamp,
            captured_s,
            time.monotonic(),
            damaged,
        )
        self._index += 1
        self.due_s = self._begun_s + self._paused_s + (self._index + feed.delay) / float(feed.rate)
        self._server._note(sent)

    def _timestamp(self, filmed_s: float) -> int:
        first = self._track.first_timestamp if isinstance(self._track, Video) else 0
        return (first + round(filmed_s * 90_000) + self._server.faults.timestamp_jump) & 0xFFFFFFFF

    def _report(self, filmed_s: float) -> None:
        """A sender report when it is time for one, and at once after the clock was set or the timestamps jumped."""
        faults = self._server.faults
        clock = (faults.clock_offset_s, faults.timestamp_jump)
        if faults.report_every_s is None or (filmed_s < self._report_due_s and clock == self._reported):
            return
        self._report_due_s, self._reported = filmed_s + faults.report_every_s, clock
        unix_s = self._begun_unix_s + filmed_s + faults.clock_offset_s + NTP_EPOCH
        clocks = (int(unix_s), int(unix_s % 1 * 2**32), self._timestamp(filmed_s))
        report = struct.pack(">BBHIIIIII", 0x80, 200, 6, self.ssrc, *clocks, self._packets, self._octets)
        name = struct.pack(">BBHIBB", 0x81, 202, 3, self.ssrc, 1, 4) + b"cam\x00\x00\x00"
        self._wire.send(report + name, control=True)

    def _send_packet(self, head: bytes, timestamp: int, payload: bytes, *, spared: bool = True) -> bool:
        """Send a packet through the faults; returns whether it was lost or changed."""
        faults, chance = self._server.faults, self._random.random
        fixed = head + struct.pack(">HII", self._sequence, timestamp & 0xFFFFFFFF, self.ssrc)
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._packets += 1
        self._octets += len(payload)
        if not spared and chance() < faults.loss:
            return True
        changed = not spared and chance() < faults.corrupt
        packet = fixed + (_flipped(payload, self._random) if changed else payload)
        over_udp = isinstance(self._wire, _Datagrams)
        if over_udp and self._held is None and chance() < faults.reorder:
            self._held = packet
            return changed
        self._wire.send(packet)
        if over_udp and chance() < faults.duplicate:
            self._wire.send(packet)
        if self._held is not None:
            self._wire.send(self._held)
            self._held = None
        return changed


def _flipped(payload: bytes, source: random.Random) -> bytes:
    """Three bits are wrong, none of them in the headers."""
    changed = bytearray(payload)
    for _ in range(3):
        changed[source.randrange(min(8, len(payload) - 1), len(payload))] ^= 1 << source.randrange(8)
    return bytes(changed)

"""An RTSP 1.0 server for tests, on 127.0.0.1, with faults on demand.

Knows no encoder: it serves what `live_clips` makes. Needs the standard library only.

    with RtspServer(make_clip()) as server:
        ...                                 # read server.url()
        server.wait_for_frames(30)
        server.faults.frozen = True         # any fault may be changed while it runs
        server.die()
        server.start()                      # it comes back on the same port

Each client has one thread, which answers its requests and sends its packets.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import secrets
import select
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self
from urllib.parse import quote, urlsplit

import pytest
from rtp_payloads import Clip, Feed, LiveFeed
from rtp_sender import Audio, Datagrams, Faults, Interleaved, Sender, Sent, Track, Unknown, Video, described

__all__ = ["Audio", "Auth", "Faults", "Request", "RtspServer", "Sent", "Unknown", "Video", "self_signed"]

POLL_S = 0.02
REASONS = {
    200: "OK",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    454: "Session Not Found",
    461: "Unsupported Transport",
    501: "Not Implemented",
    503: "Service Unavailable",
}


@dataclass(frozen=True)
class Auth:
    """Who may watch. With `qop`, Digest insists on qop=auth."""

    user: str
    password: str
    scheme: Literal["basic", "digest"] = "digest"
    qop: bool = False
    realm: str = "camera"


class Request(NamedTuple):
    """What a client asked; names of headers are in small letters."""

    method: str
    uri: str
    headers: Mapping[str, str]


class RtspServer:
    """Serves tracks by path; a single feed or list of tracks is served at /cam. `tls` makes it RTSPS.

    session_timeout_s: a client that asks nothing for so long is dropped; RTCP does not count.
    sent, requests, control: what was sent, what was asked, and the RTCP packets that clients sent, in order.
    """

    def __init__(
        self,
        served: Feed | Sequence[Track] | Mapping[str, Sequence[Track]],
        *,
        auth: Auth | None = None,
        faults: Faults | None = None,
        tls: ssl.SSLContext | None = None,
        session_timeout_s: int = 60,
    ) -> None:
        if isinstance(served, Clip | LiveFeed):
            served = [Video(served)]
        self.mounts = dict(served) if isinstance(served, Mapping) else {"/cam": served}
        self.auth, self.tls, self.session_timeout_s = auth, tls, session_timeout_s
        self.nonce = secrets.token_hex(8)
        self.port = 0
        self.sent: list[Sent] = []
        self.requests: list[Request] = []
        self.control: list[bytes] = []
        self.changed = threading.Condition()
        self._faults = faults or Faults()
        self._clients: list[_Client] = []
        self._accepted = 0
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None

    @property
    def faults(self) -> Faults:
        """To be changed, not replaced."""
        return self._faults

    def start(self) -> None:
        """Listen, on the port of last time if there was one."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self._listener.settimeout(POLL_S)
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), name="rtsp-accept")
        self._acceptor.start()

    def die(self) -> None:
        """Close the listener and every connection; `start` brings the server back."""
        with self.changed:
            listener, self._listener = self._listener, None
        if listener and self._acceptor:
            self._acceptor.join()
            listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection; clients may come back at once."""
        with self.changed:
            clients = list(self._clients)
        for client in clients:
            client.hang_up()
        # Clients that die of themselves must not wait for each other.
        if threading.current_thread() not in clients:
            for client in clients:
                client.join()

    def close(self) -> None:
        self.die()

    def url(self, path: str = "/cam") -> str:
        """The address, with user and password percent-encoded where there are any."""
        scheme = "rtsps" if self.tls else "rtsp"
        login = f"{quote(self.auth.user, safe='')}:{quote(self.auth.password, safe='')}@" if self.auth else ""
        return f"{scheme}://{login}127.0.0.1:{self.port}{path}"

    @property
    def connected(self) -> int:
        """Open connections."""
        return len(self._clients)

    @property
    def playing(self) -> int:
        """Clients that are being sent packets, or would be without faults."""
        return sum(client.playing for client in list(self._clients))

    @property
    def stuck(self) -> int:
        """Clients that have half a packet."""
        return sum(client.stuck for client in list(self._clients))

    def wait_for(self, claim: Callable[[], object], timeout_s: float = 30) -> None:
        """Wait until `claim` holds; it is looked at when a frame was sent, a request came or a client came or went."""
        with self.changed:
            assert self.changed.wait_for(claim, timeout_s), f"not within {timeout_s} s"

    def wait_for_frames(self, count: int, timeout_s: float = 30) -> None:
        """Wait until `count` more frames were sent, to whomever."""
        with self.changed:
            goal = len(self.sent) + count
        self.wait_for(lambda: len(self.sent) >= goal, timeout_s)

    def wait_for_playing(self, count: int, timeout_s: float = 30) -> None:
        self.wait_for(lambda: self.playing == count, timeout_s)

    def wait_for_connected(self, count: int, timeout_s: float = 30) -> None:
        self.wait_for(lambda: self.connected == count, timeout_s)

    def wait_for_request(self, method: str, timeout_s: float = 30) -> None:
        """Wait until a client asked for this, now or before."""
        self.wait_for(lambda: any(request.method == method for request in self.requests), timeout_s)

    def renew_nonce(self) -> None:
        """From now on Digest wants another nonce."""
        self.nonce = secrets.token_hex(8)

    def note(self, *, sent: Sent | None = None, request: Request | None = None, control: Sequence[bytes] = ()) -> None:
        """Keep what happened, and wake those who wait for it."""
        with self.changed:
            self.sent += [sent] if sent else []
            self.requests += [request] if request else []
            self.control += control
            self.changed.notify_all()

    def forget(self, client: _Client) -> None:
        with self.changed:
            self._clients.remove(client)
            self.changed.notify_all()

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
            connection.setblocking(True)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            client = _Client(self, connection, self._accepted)
            self._accepted += 1
            with self.changed:
                self._clients.append(client)
                client.start()
                self.changed.notify_all()


class _Client(threading.Thread):
    """One connection: reads requests, and sends packets when they are due."""

    def __init__(self, server: RtspServer, connection: socket.socket, number: int) -> None:
        super().__init__(name=f"rtsp-client-{number}")
        self.playing = False
        self.stuck = False
        self._server, self._connection, self._number = server, connection, number
        self._buffer = b""
        self._session = ""
        self._senders: dict[int, tuple[str, Sender, Datagrams | Interleaved]] = {}
        self._heard_s = time.monotonic()

    def hang_up(self) -> None:
        """From any thread: end the connection, whatever its thread waits for."""
        with contextlib.suppress(OSError):
            # That of a TLS socket would pull the connection from under its thread.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def run(self) -> None:
        try:
            if isinstance(self._connection, ssl.SSLSocket):
                self._connection.do_handshake()
            while self._listen():
                self._stream()
        except (OSError, ValueError):
            pass  # the client went, or spoke nonsense
        finally:
            self.playing = False
            for _, _, wire in self._senders.values():
                wire.close()
            self._connection.close()
            self._server.forget(self)

    def _listen(self) -> bool:
        """Wait for requests no longer than until a packet is due, and answer them; False at the end."""
        unread = isinstance(self._connection, ssl.SSLSocket) and self._connection.pending()
        if not unread and not select.select([self._connection], [], [], self._wait_s())[0]:
            return True
        data = self._connection.recv(65536)
        self._buffer += data
        while not self._server.faults.silent and (request := self._request()):
            self._heard_s = time.monotonic()
            self._server.note(request=request)
            if not self._answer(request):
                return False
        return bool(data)

    def _wait_s(self) -> float | None:
        if not self.playing:
            return None
        due_s = min(sender.due_s for _, sender, _ in self._senders.values())
        return min(POLL_S, max(0.0, due_s - time.monotonic()))

    def _stream(self) -> None:
        """Send what is due."""
        if not self.playing:
            return
        if time.monotonic() - self._heard_s > self._server.session_timeout_s:
            raise ConnectionAbortedError("the client sent no keep-alive")
        for _, sender, wire in self._senders.values():
            self._server.note(control=wire.received())
            if sender.due_s > time.monotonic():
                continue
            faults = self._server.faults
            if faults.die_at is not None and sender.index >= faults.die_at:
                self._server.die()
                raise ConnectionAbortedError("the server died")
            if faults.hang_up_at is not None and sender.index >= faults.hang_up_at:
                raise ConnectionAbortedError("the server ends the session")
            sent = sender.send_next()
            self.stuck |= sender.stuck
            if sent or self.stuck:
                self._server.note(sent=sent)

    def _request(self) -> Request | None:
        """The next request in the buffer, or None as long as it is not whole; RTCP between requests is kept apart."""
        while self._buffer[:1] == b"$":
            if len(self._buffer) < 4 or len(self._buffer) < (size := 4 + struct.unpack_from(">H", self._buffer, 2)[0]):
                return None
            self._server.note(control=[self._buffer[4:size]])
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
        faults, method = self._server.faults, request.method
        if method in faults.mute:
            return True
        if method == "OPTIONS" and method not in faults.status:
            self._reply(request, 200, ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"])
        elif challenge := self._challenge(request):
            self._reply(request, 401, [f"WWW-Authenticate: {challenge}"])
        elif method in faults.status:
            self._reply(request, faults.status[method])
        elif method == "DESCRIBE":
            self._describe(request)
        elif method == "SETUP":
            self._set_up(request)
        elif not self._session or self._session != request.headers.get("session", "").split(";")[0]:
            self._reply(request, 454)
        elif method == "PLAY":
            self._play(request)
        elif method == "TEARDOWN":
            self._reply(request, 200)
            return False
        else:
            self._reply(request, 200 if method in ("GET_PARAMETER", "SET_PARAMETER") else 501)
        return True

    def _reply(self, request: Request, status: int, lines: Sequence[str] = (), body: str = "") -> None:
        head = [f"RTSP/1.0 {status} {REASONS.get(status, 'Error')}", f"CSeq: {request.headers.get('cseq', 0)}", *lines]
        if body:
            head += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        self._connection.sendall(("\r\n".join([*head, "", ""]) + body).encode())

    def _describe(self, request: Request) -> None:
        tracks = self._server.mounts.get(urlsplit(request.uri).path.rstrip("/"))
        if tracks is None:
            self._reply(request, 404)
            return
        base = f"{request.uri.rstrip('/')}/"
        lines = ["v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=camera", "c=IN IP4 0.0.0.0", "t=0 0", "a=control:*"]
        for number, track in enumerate(tracks):
            absolute = isinstance(track, Video) and track.absolute_control
            lines += described(track, f"{base if absolute else ''}track{number}")
        self._reply(request, 200, [f"Content-Base: {base}"], "\r\n".join([*lines, ""]))

    def _set_up(self, request: Request) -> None:
        path, _, name = urlsplit(request.uri).path.rpartition("/")
        tracks = self._server.mounts.get(path, ())
        number = int(name.removeprefix("track")) if re.fullmatch(r"track\d+", name) else len(tracks)
        if number >= len(tracks) or number in self._senders:
            self._reply(request, 404)
            return
        transport = request.headers.get("transport", "")
        kind = "tcp" if "TCP" in transport else "udp"
        numbers = re.search(r"(interleaved|client_port)=(\d+)", transport)
        if kind in self._server.faults.refuse or numbers is None:
            self._reply(request, 461)
            return
        first = int(numbers[2])
        wire: Datagrams | Interleaved
        if kind == "tcp":
            wire = Interleaved(self._connection.sendall, first)
            answer = f"RTP/AVP/TCP;unicast;interleaved={first}-{first + 1}"
        else:
            wire = Datagrams(self._connection.getpeername()[0], first)
            answer = f"RTP/AVP;unicast;client_port={first}-{first + 1};server_port={wire.port}-{wire.port + 1}"
        sender = Sender(tracks[number], wire, self._server.faults, client=self._number, path=path, number=number)
        self._senders[number] = (request.uri, sender, wire)
        self._session = self._session or secrets.token_hex(4)
        session = f"Session: {self._session};timeout={self._server.session_timeout_s}"
        self._reply(request, 200, [f"Transport: {answer};ssrc={sender.ssrc:08X}", session])

    def _play(self, request: Request) -> None:
        lines = [f"Session: {self._session}", "Range: npt=0.000-"]
        if not self.playing:
            lines.append("RTP-Info: " + ",".join(f"url={uri};{s.start()}" for uri, s, _ in self._senders.values()))
        self._reply(request, 200, lines)
        self.playing = True
        self._server.note()

    def _challenge(self, request: Request) -> str:
        """What a client must prove before it is answered; nothing when it has."""
        auth = self._server.auth
        if auth is None:
            return ""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if auth.scheme == "basic":
            token = base64.b64encode(f"{auth.user}:{auth.password}".encode()).decode()
            return "" if (scheme.lower(), given) == ("basic", token) else f'Basic realm="{auth.realm}"'
        said = {name: quoted or bare for name, quoted, bare in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', given)}
        nonce = self._server.nonce
        who = _md5(f"{auth.user}:{auth.realm}:{auth.password}")
        middle = f"{said.get('nc')}:{said.get('cnonce')}:auth:" if auth.qop else ""
        response = _md5(f"{who}:{nonce}:{middle}{_md5(f'{request.method}:{request.uri}')}")
        wanted = {"username": auth.user, "uri": request.uri, "nonce": nonce, "response": response}
        if scheme.lower() == "digest" and all(said.get(name) == value for name, value in wanted.items()):
            return ""
        stale = ', stale="true"' if said.get("nonce", nonce) != nonce else ""
        qop = ', qop="auth"' if auth.qop else ""
        return f'Digest realm="{auth.realm}", nonce="{nonce}", algorithm=MD5{qop}{stale}'


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def self_signed(folder: Path) -> ssl.SSLContext:
    """A certificate that nobody signed, for RTSPS; the test is skipped where OpenSSL's program is missing."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl to make a certificate")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*new, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context

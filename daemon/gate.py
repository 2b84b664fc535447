"""Who may connect to the daemon: those whose keys are on the list, and no more than there is room for.

Knows ZeroMQ's handshakes; nothing of what is said afterwards.

It answers the requests of ZAP (ZeroMQ RFC 27). pyzmq's Authenticator does that, too, but refuses with status 400 alone,
lets in whoever has no keys, and tells its callback no address; here a client must learn that there is no more room
(status 500), and the log who was refused.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import socket as sockets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, Self

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from .allow_list import AllowList
from .errors import ConfigError
from .keys import Keys

log = logging.getLogger(__name__)

HANDSHAKE_S: Final = 5.0
"""How long a handshake may take: who says nothing until then is disconnected."""

_EVENTS: Final = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_GRACE_S: Final = 1.0
_LOG_EVERY_S: Final = 1.0


@dataclass(frozen=True)
class Admission:
    """What it takes to get in: the daemon's own keys, and the list of clients' keys."""

    keys: Keys
    allowed: AllowList


def checked_bind(endpoint: str, keys: Keys | None) -> str:
    """`endpoint`, if it may be bound: without keys, only where no other host comes in. ConfigError if not."""
    if keys is not None or endpoint.startswith("ipc://") or _is_loopback(endpoint):
        return endpoint
    raise ConfigError(
        f"{endpoint!r} can be reached from other hosts and must have keys, got none: make some with "
        "`deblurd keys new`, or bind to 127.0.0.1 or ipc://PATH"
    )


def _is_loopback(endpoint: str) -> bool:
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].removeprefix("[").removesuffix("]")
    if not endpoint.startswith("tcp://"):
        return False
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@dataclass(frozen=True)
class _Connection:
    peer: str
    since_s: float


@dataclass
class _Door:
    """A bound socket, and the connections to it by their file descriptors."""

    most: int
    admission: Admission | None
    monitor: zmq.Socket[bytes]
    connections: dict[int, _Connection] = field(default_factory=dict)
    let_in_s: deque[float] = field(default_factory=deque)
    """When somebody was let in whose handshake may still be going on."""
    failure: str | None = None
    """Why the handshake failed that fails just now."""


class Gate:
    """Asks every client of a context's sockets for its key, and counts them.

    `guard` every socket before it is bound. Close those sockets first, then the gate, then end the context: what libzmq
    tells of a socket must be read, or its thread stands still.
    A key that is taken off the list keeps the connections that it has.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._doors: dict[bytes, _Door] = {}
        self._lock = threading.Lock()
        self._zap = context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind("inproc://zeromq.zap.01")
        self._wake, self._woken = sockets.socketpair()
        self._closing = False
        self._said_s, self._unsaid = -_LOG_EVERY_S, 0
        self._thread = threading.Thread(target=self._serve, name="gate")
        self._thread.start()

    def guard(self, socket: zmq.Socket[Any], most: int, admission: Admission | None = None) -> None:
        """Let at most `most` connect to `socket`, and with an `admission` nobody whose key is not on its list.

        Before `socket` is bound; not while another thread uses it.
        """
        if admission:
            admission.keys.serve(socket)
        # Without a handler, libzmq would let in every key: it must not.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.setsockopt(zmq.HANDSHAKE_IVL, round(HANDSHAKE_S * 1000))
        with self._lock:
            domain = b"%d" % len(self._doors)
            socket.setsockopt(zmq.ZAP_DOMAIN, domain)
            address = f"inproc://gate-{domain.decode()}"
            socket.monitor(address, _EVENTS)
            monitor = self._context.socket(zmq.PAIR)
            monitor.setsockopt(zmq.LINGER, 0)
            monitor.connect(address)
            self._doors[domain] = _Door(most, admission, monitor)
        self._wake.send(b"\0")

    def close(self) -> None:
        """End; may be called again."""
        if self._closing:
            return
        self._closing = True
        self._wake.send(b"\0")
        self._thread.join()
        for socket in (self._zap, *(door.monitor for door in self._doors.values())):
            socket.close()
        self._wake.close()
        self._woken.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._zap, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        while not self._closing:
            events = dict(poller.poll())
            if self._woken.fileno() in events:
                self._woken.recv(4096)
            with self._lock:
                doors = list(self._doors.values())
            for door in doors:
                poller.register(door.monitor, zmq.POLLIN)
                # Before the request: who has gone makes room for who comes.
                self._watch(door)
            if self._zap in events:
                self._answer()

    def _watch(self, door: _Door) -> None:
        """Take in who came and who went."""
        while door.monitor.poll(0):
            event: dict[str, Any] = dict(parse_monitor_message(door.monitor.recv_multipart()))
            kind, value = event["event"], event["value"]
            if kind == zmq.EVENT_ACCEPTED:
                door.connections[value] = _Connection(_peer(value), time.monotonic())
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                door.failure = _meant(value, door.admission)
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value in (errno.EPIPE, errno.ECONNRESET):
                door.failure = f"it broke off, as one {'without' if door.admission else 'with'} keys does"
            elif kind == zmq.EVENT_DISCONNECTED:
                connection = door.connections.pop(value, None)
                if door.failure is not None and connection:  # libzmq tells of both in one go
                    self._say(f"{connection.peer} was refused: {door.failure}")
                door.failure = None

    def _answer(self) -> None:
        request = self._zap.recv_multipart()
        status, reason, user = b"300", b"", b""
        try:
            status, reason, user = self._decide(request)
        except Exception:  # the thread's edge: one client must not shut out all others
            log.exception("a client was refused because of an error in here")
        self._zap.send_multipart([b"1.0", request[1] if len(request) > 1 else b"", status, reason, user, b""])

    def _decide(self, request: list[bytes]) -> tuple[bytes, bytes, bytes]:
        """Status, reason and user for a request of ZAP."""
        _version, _id, domain, address, _identity, mechanism, *credentials = request
        door = self._doors[domain]
        peer, key = address.decode(errors="replace"), ""
        if door.admission:
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" else ""
            if key not in door.admission.allowed:
                self._say(f"{peer} was refused: the key {key} is not among those that are allowed")
                return b"400", b"key not allowed", b""
        now_s = time.monotonic()
        if _occupied(door, now_s) >= door.most:
            self._say(f"{peer} was refused: {door.most} connections are there already ('publish.max_clients')")
            return b"500", b"too many clients", b""
        door.let_in_s.append(now_s)
        return b"200", b"OK", key.encode()

    def _say(self, line: str) -> None:
        """Log a refusal, at most once a second."""
        now_s = time.monotonic()
        if now_s - self._said_s < _LOG_EVERY_S:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more since the last one)" if self._unsaid else ""
        log.warning("%s%s", line, more)
        self._said_s, self._unsaid = now_s, 0


def _occupied(door: _Door, now_s: float) -> int:
    """How many others are connected.

    libzmq does not tell whose handshake has ended well. That of all who have been there for longer than one may take
    has; of the others, at most as many as were let in since.
    """
    since_s = now_s - HANDSHAKE_S - _GRACE_S
    while door.let_in_s and door.let_in_s[0] < since_s:
        door.let_in_s.popleft()
    old = sum(each.since_s < since_s for each in door.connections.values())
    young = len(door.connections) - old
    return old + min(max(young - 1, 0), len(door.let_in_s))  # the one that asks is among the young


def _meant(failure: int, admission: Admission | None) -> str:
    """What a failed handshake says about the client."""
    if failure == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        return "it has no keys" if admission else "it has keys, where none are asked for"
    if failure == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
        return "it expects a daemon with another key"
    return f"it broke the rules of ZeroMQ (error {failure:#x})"


def _peer(descriptor: int) -> str:
    """The address at the other end of a connection that libzmq has accepted, if it is still there."""
    with contextlib.suppress(OSError), sockets.fromfd(descriptor, sockets.AF_INET, sockets.SOCK_STREAM) as copy:
        address = copy.getpeername()
        return str(address[0]) if isinstance(address, tuple) else "a process of this host"
    return "somebody"

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
import math
import socket as sockets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Self

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from . import descriptors
from .allow_list import AllowList
from .errors import ConfigError
from .keys import Keys

log = logging.getLogger(__name__)

HANDSHAKE_S: Final = 5.0
"""How long a handshake may take: who says nothing until then is disconnected."""
STRANGERS: Final = 64
"""Connections that may be there beside those of clients: each takes a file descriptor until its handshake ends."""
LOOK_S: Final = 0.02
"""How often it is looked how much came over each connection."""
TRICKLE: Final = 32
"""Bytes a second that any connection may send: heartbeats do."""

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


@dataclass
class _Connection:
    peer: str
    since_s: float
    identity: int | None
    counted_s: float
    """Since when it is counted what it sends, and how much it had sent by then."""
    counted: int = 0


@dataclass
class _Door:
    """A bound socket, and the connections to it by their file descriptors."""

    most: int
    admission: Admission | None
    monitor: zmq.Socket[bytes]
    allowance: float
    connections: dict[int, _Connection] = field(default_factory=dict)
    let_in_s: deque[float] = field(default_factory=deque)
    """When somebody was let in whose handshake may still be going on."""
    heard: set[int] = field(default_factory=set)
    """Over which connections a whole message was read since the last look."""
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

    def guard(
        self,
        socket: zmq.Socket[Any],
        most: int,
        admission: Admission | None = None,
        allowance: float = math.inf,
    ) -> Callable[[int], None]:
        """Let at most `most` connect to `socket`, and with an `admission` nobody whose key is not on its list.

        Whoever sends more than `allowance` bytes is thrown out, where the system tells (TCP on Linux): libzmq bounds
        neither how many topics a connection subscribes to, nor of how many parts a message is. What is returned is to
        be called with the descriptor of a connection over which a whole message was read: it may send as much again.

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
            door = self._doors[domain] = _Door(most, admission, monitor, allowance)
        self._wake.send(b"\0")
        return door.heard.add

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
        looked_s = time.monotonic()
        while not self._closing:
            metered = any(door.connections and door.allowance < math.inf for door in self._doors.values())
            events = dict(poller.poll(round(LOOK_S * 1000) if metered else None))
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
            if time.monotonic() - looked_s >= LOOK_S:
                looked_s = time.monotonic()
                for door in doors:
                    self._meter(door, looked_s)

    def _watch(self, door: _Door) -> None:
        """Take in who came and who went."""
        while door.monitor.poll(0):
            event: dict[str, Any] = dict(parse_monitor_message(door.monitor.recv_multipart()))
            kind, value = event["event"], event["value"]
            if kind == zmq.EVENT_ACCEPTED:
                now_s = time.monotonic()
                door.connections[value] = _Connection(
                    descriptors.peer(value), now_s, descriptors.identity(value), now_s
                )
                if len(door.connections) > door.most + STRANGERS:
                    self._throw_out(door, value, "too many connect at once")
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                door.failure = _meant(value, door.admission)
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value in (errno.EPIPE, errno.ECONNRESET):
                door.failure = f"it broke off, as one {'without' if door.admission else 'with'} keys does"
            elif kind == zmq.EVENT_DISCONNECTED:
                connection = door.connections.pop(value, None)
                if door.failure is not None and connection:  # libzmq tells of both in one go
                    self._say(f"{connection.peer} was refused: {door.failure}")
                door.failure = None

    def _meter(self, door: _Door, now_s: float) -> None:
        """Throw out those who send more than any client does."""
        while door.heard:
            descriptor = door.heard.pop()
            if connection := door.connections.get(descriptor):
                connection.counted_s, connection.counted = now_s, descriptors.received(descriptor)
        if door.allowance < math.inf:
            for descriptor, each in door.connections.items():
                sent = descriptors.received(descriptor) - each.counted
                if sent > door.allowance + TRICKLE * (now_s - each.counted_s):
                    self._throw_out(door, descriptor, f"it sends more than clients do ({sent} bytes)")

    def _throw_out(self, door: _Door, descriptor: int, reason: str) -> None:
        connection = door.connections[descriptor]
        descriptors.cut(descriptor, connection.identity)
        self._say(f"{connection.peer} was thrown out: {reason}")

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

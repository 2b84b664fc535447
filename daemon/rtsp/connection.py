"""Sockets that never block: every wait has a deadline, and ends at once when somebody asks to stop.

Knows no RTSP. A deadline is a time of the monotonic clock, in seconds.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from ..tls import distrusted
from .errors import RtspError, StoppedError

_CHUNK: Final = 64 * 1024
_MAX_UNSENT: Final = 64 * 1024
_NO_HOST: Final = "the host must answer, and does not; is the camera on, and the address right?"
_NO_TLS: Final = "the server must answer in TLS, and does not; is this the port for rtsps?"

Place = tuple[int, Any]
"""Family and socket address."""


class Stop:
    """Asks whoever waits in this module to end. `set` may be called by any thread, at any time."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._lock = threading.Lock()
        self._closed = False

    def fileno(self) -> int:
        """Readable when asked to stop."""
        return self._reader.fileno()

    def set(self) -> None:
        with self._lock:
            if not self._closed:
                self._writer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._reader.close()
            self._writer.close()


class Sockets:
    """The sockets of one session, waited on together."""

    def __init__(self, stop: Stop) -> None:
        self._selector = selectors.DefaultSelector()
        self._stop = stop
        self._selector.register(stop, selectors.EVENT_READ)

    def watch(self, one: socket.socket, events: int = selectors.EVENT_READ) -> None:
        """Wait for this one from now on, or for other events of it."""
        if one in self._selector.get_map():
            self._selector.modify(one, events)
        else:
            self._selector.register(one, events)

    def forget(self, one: socket.socket) -> None:
        """Wait for it no more."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(one)

    def wait(self, until: float) -> list[socket.socket]:
        """Those that are ready; none when it is `until`. StoppedError when asked to stop."""
        events = self._selector.select(max(0.0, until - time.monotonic()))
        ready = [key.fileobj for key, _ in events]
        if self._stop in ready:
            raise StoppedError
        return [one for one in ready if isinstance(one, socket.socket)]

    def close(self) -> None:
        self._selector.close()


def resolve(host: str, port: int, stop: Stop, until: float) -> list[Place]:
    """Where a host is. RtspError for an unknown one, and for a name service that does not answer."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        if "%" not in host:
            return [(socket.AF_INET, (host, port)) if address.version == 4 else (socket.AF_INET6, (host, port, 0, 0))]
    found: list[Place] = []
    failed: list[OSError | UnicodeError] = []
    reader, writer = socket.socketpair()

    def look_up() -> None:
        try:
            found.extend((info[0], info[4]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            failed.append(error)
        writer.close()  # which wakes the reader

    # The system's resolver cannot be interrupted, and may take longer than anybody wants to wait: then this thread is
    # left behind, and ends by itself.
    threading.Thread(target=look_up, name=f"look up {host}"[:40], daemon=True).start()
    sockets = Sockets(stop)
    try:
        sockets.watch(reader)
        answered = sockets.wait(until)
    finally:
        sockets.close()
        reader.close()
    if failed or (answered and not found):
        raise RtspError("the host must be known, got no address for its name; is it spelled right?")
    if not answered:
        raise RtspError("the name service must say where the host is, got no answer in time")
    return found


class Connection:
    """A TCP connection, with TLS or without."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._socket: socket.socket | None = None
        self._unsent = bytearray()

    @property
    def socket(self) -> socket.socket:
        assert self._socket is not None
        return self._socket

    @property
    def busy(self) -> bool:
        """The other end has not yet read all that was sent."""
        return bool(self._unsent)

    def open(self, places: Sequence[Place], until: float) -> None:
        """Connect to the first place that answers. RtspError says why none did."""
        failure: RtspError | None = None
        for number, (family, place) in enumerate(places):
            now = time.monotonic()
            share = (until - now) / (len(places) - number)
            try:
                self._connect(family, place, now + share)
            except RtspError as error:
                failure = failure or error
                self.close()
            else:
                return
        raise failure or RtspError("the host must have an address, got none")

    def secure(self, host: str, context: ssl.SSLContext, until: float) -> None:
        """Begin TLS. RtspError if the other end cannot, or must not be trusted."""
        plain = self.socket
        self._sockets.forget(plain)
        try:
            tls = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        except (OSError, ValueError) as error:
            raise RtspError(f"TLS must begin, got an error ({_why(error)})") from error
        self._socket = tls
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                self._wait_for(selectors.EVENT_READ, until, _NO_TLS)
            except ssl.SSLWantWriteError:
                self._wait_for(selectors.EVENT_WRITE, until, _NO_TLS)
            except ssl.SSLCertVerificationError as error:
                raise RtspError(distrusted(error.verify_message), lasting=True) from None
            except OSError as error:
                raise RtspError(f"the server must speak TLS, got an error ({_why(error)})") from None
            else:
                break
        self._sockets.watch(tls)

    def send(self, data: bytes) -> None:
        """Send now, or as soon as there is room: `wait` of the sockets says when, and `flush` does it."""
        if len(self._unsent) + len(data) > _MAX_UNSENT:
            raise RtspError("the server must read what it is sent, and has not for long")
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        """Send what has waited for room."""
        while self._unsent:
            try:
                sent = self.socket.send(self._unsent)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError as error:
                raise RtspError(_closed(error)) from None
            del self._unsent[:sent]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._sockets.watch(self.socket, wanted)

    def receive(self) -> bytes:
        """What has arrived, maybe nothing. RtspError when the other end has closed."""
        self.flush()
        data = self._receive()
        while isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            data += self._receive()  # no selector sees these
        return data

    def close(self) -> None:
        if self._socket is not None:
            self._sockets.forget(self._socket)
            self._socket.close()
            self._socket = None
        self._unsent.clear()

    def _receive(self) -> bytes:
        try:
            data = self.socket.recv(_CHUNK)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b""
        except OSError as error:
            raise RtspError(_closed(error)) from None
        if not data:
            raise RtspError("the server closed the connection")
        return data

    def _connect(self, family: int, place: Any, until: float) -> None:
        self._socket = one = socket.socket(family, socket.SOCK_STREAM)
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = one.connect_ex(place)
        if code == errno.EINPROGRESS:
            self._wait_for(selectors.EVENT_WRITE, until, _NO_HOST)
            code = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise RtspError(_unreachable(code))
        self._sockets.watch(one)

    def _wait_for(self, event: int, until: float, late: str) -> None:
        self._sockets.watch(self.socket, event)
        if not self._sockets.wait(until):
            raise RtspError(late)


def _unreachable(code: int) -> str:
    if code == errno.ECONNREFUSED:
        return "the host refuses the connection; is the port right, and the camera's RTSP switched on?"
    if code in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EADDRNOTAVAIL):
        return f"the host must be reachable, and is not ({_why(OSError(code, errno.errorcode.get(code, '')))})"
    if code == errno.ETIMEDOUT:
        return _NO_HOST
    return f"the host must be reachable, and is not ({_why(OSError(code, ''))})"


def _closed(error: OSError) -> str:
    return f"the server closed the connection ({_why(error)})"


def _why(error: Exception) -> str:
    """The system's words for an error; they hold no address."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS").replace("_", " ").lower()
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return type(error).__name__

"""A socket that is connected to a daemon, with its keys, and with a word on why the daemon refuses it.

Knows ZeroMQ; nothing of what is said over the socket.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from contextlib import suppress

import zmq
from zmq.utils.monitor import parse_monitor_message

from .keys import HANDSHAKE_EVENTS, Handshakes, Keys
from .wire import TCP_KEEPALIVE

KNOCK_S = 1.0
"""How soon a refused socket tries again: libzmq never does so by itself, and a key may come onto the list."""


class Connection:
    """A connected socket for one thread at a time. ValueError for an endpoint that is no address of ZeroMQ.

    Whoever polls `socket` polls `monitor` too and calls `look` when it has something, or once a second.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        endpoint: str,
        keys: Keys | None = None,
        options: Iterable[tuple[int, int | bytes]] = (),
    ) -> None:
        self.refusal: str | None = None
        """Why the daemon does not let the socket in, in one line."""
        self.met_s: float | None = None
        """When the other end was last met, by the monotonic clock."""
        self._endpoint, self._handshakes = endpoint, Handshakes(keys)
        self._refused_s = 0.0
        self.socket: zmq.Socket[bytes] = context.socket(kind)
        self.monitor: zmq.Socket[bytes] | None = None
        try:
            for option, value in ((zmq.LINGER, 0), *TCP_KEEPALIVE, *options):
                self.socket.setsockopt(option, value)
            if endpoint.startswith("tcp://["):
                self.socket.setsockopt(zmq.IPV6, 1)
            if keys is not None:
                keys.connect(self.socket)
            self.monitor = self.socket.get_monitor_socket(HANDSHAKE_EVENTS)
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            example = "tcp://127.0.0.1:5555"
            raise ValueError(f"endpoint must be a ZeroMQ address such as {example}, got {endpoint!r}") from error
        except ValueError:
            self.close()
            raise

    def look(self) -> None:
        """Read what the monitor says; knock again where the daemon refused a while ago."""
        while self.monitor is not None and self.monitor.poll(0):
            event = parse_monitor_message(self.monitor.recv_multipart())
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.refusal, self.met_s = None, time.monotonic()
            if reason := self._handshakes.refusal(event):
                self.refusal, self._refused_s = f"{self._endpoint}: {reason}", time.monotonic()
        if self.refusal is not None and time.monotonic() - self._refused_s > KNOCK_S:
            self._refused_s = time.monotonic()
            self.socket.disconnect(self._endpoint)
            self.socket.connect(self._endpoint)

    def close(self) -> None:
        """May be called again."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.socket.close(linger=0)
            if self.monitor is not None:
                self.monitor.close(linger=0)


class Bell:
    """Wakes a thread that polls it, from any other thread."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)

    def fileno(self) -> int:
        """What to poll for."""
        return self._out.fileno()

    def ring(self) -> None:
        """May be called when it is closed already."""
        with suppress(OSError):  # it rings already, or nobody is there any more
            self._in.send(b"\0")

    def hush(self) -> None:
        """Take all rings."""
        try:
            while self._out.recv(64):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        self._in.close()
        self._out.close()

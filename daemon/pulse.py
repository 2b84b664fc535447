"""Keeps in touch with a daemon: whether it lives, what it offers, whether it refuses this client.

Knows the control endpoint; nothing of frames, which never stand in the way of its pings.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import zmq

from . import control, wire
from .connection import Bell, Connection
from .control import Request, Welcome

State = Literal["connecting", "live", "lost"]

PING_S = 0.5
LOST_S = 1.5
"""How long nothing is heard of a daemon before it is taken for dead."""


class Pulse:
    """Asks a daemon every half second whether it is there, in a thread of its own.

    connect: makes a DEALER that is connected to the control endpoint.
    changed: called in the pulse's thread when `state`, `welcome` or `refusal` has changed.

    state: `connecting` until the daemon first answers; `live`; `lost` when it has not answered for LOST_S.
    welcome: what the daemon says of itself; None before its first answer.
    refusal: why it does not let this client in, or None.
    contacts: counts how often a daemon was found: the first time, after it was lost, and when it was started anew.
    """

    def __init__(self, connect: Callable[[], Connection], changed: Callable[[], None]) -> None:
        self.state: State = "connecting"
        self.welcome: Welcome | None = None
        self.refusal: str | None = None
        self.contacts = 0
        self._changed, self._heard_s, self._closed = changed, 0.0, False
        self._connection, self._bell = connect(), Bell()
        # A daemon: a program that ends without `close` must not hang.
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        """From now on `changed` may be called."""
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        for waited_for in (self._connection.socket, self._connection.monitor, self._bell.fileno()):
            poller.register(waited_for, zmq.POLLIN)
        ping_s = time.monotonic()
        while not self._closed:
            now = time.monotonic()
            if now >= ping_s:
                # While the daemon is not known it is greeted: a ping would not say what it offers.
                self._ask("ping" if self.state == "live" else "hello")
                ping_s = now + PING_S
            poller.poll(math.ceil(max(0.0, ping_s - now) * 1000))
            before = self.state, self.welcome, self.refusal
            self._listen()
            self._connection.look()
            if self._connection.refusal:
                self.refusal = self._connection.refusal
            if self.state == "live" and time.monotonic() - self._heard_s > LOST_S:
                self.state = "lost"
            if before != (self.state, self.welcome, self.refusal) and not self._closed:
                self._changed()

    def _ask(self, kind: Literal["hello", "ping"]) -> None:
        with suppress(zmq.Again):  # two wait already for a daemon that does not take them
            self._connection.socket.send(control.pack_request(Request(kind)), zmq.NOBLOCK)

    def _listen(self) -> None:
        while True:
            try:
                data = self._connection.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._hear(wire.unpack(data))
            except wire.VersionError as error:
                self.refusal = str(error)
            except wire.WireError:
                continue  # whatever it is, it is not an answer

    def _hear(self, answer: wire.Message) -> None:
        kind = answer.header.get("kind")
        if kind == "welcome":
            welcome = control.to_welcome(answer)
            if self.state != "live" or self.welcome is None or welcome.run_id != self.welcome.run_id:
                self.contacts += 1
            self.welcome, self.state, self.refusal = welcome, "live", None
        elif kind == "refused":
            self.refusal = str(answer.header.get("reason"))
        elif kind == "pong" and self.welcome is not None and answer.header.get("run_id") != self.welcome.run_id:
            self._ask("hello")  # another daemon than the one that was greeted
        self._heard_s = time.monotonic()

    def close(self) -> None:
        """May be called again, and by any thread."""
        self._closed = True
        self._bell.ring()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._connection.close()
        self._bell.close()

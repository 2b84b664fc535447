"""One endpoint of the daemon: a socket for those who subscribe, and beside it a desk for those who ask.

Knows sockets; nothing of where frames come from or how they are encoded.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import zmq

from . import control, descriptors, private_path, wire
from .control import Welcome
from .desk import Desk
from .errors import SinkError
from .gate import Admission, Gate, checked_bind
from .parcel import Format, Parcel
from .private_path import Bound

log = logging.getLogger(__name__)

TICK_MS = 200
"""How often the desk looks for clients that have gone silent."""
LINGER_S = 0.5
"""How long `close` goes on delivering."""
PORTS_TRIED = 100
MAX_GREETING = 640
"""Bytes of a message to the socket of frames: a handshake with keys is larger than any subscription."""
SUBSCRIPTIONS = 16
"""How often a subscriber may subscribe to each stream over one connection, or to something else."""
TOPIC_SIZE = 320
"""Bytes that a subscription takes on its way at most, with all that is around it."""
REQUESTS = 1 << 17
"""Bytes that may come from a client before they are a whole request: several may be on their way."""
RECEIVE_BUFFER = 1 << 16
"""Bytes that the system keeps of what a client sends; what strangers sent is read even if they are thrown out."""


@dataclass(frozen=True)
class PublisherOptions:
    """How frames are published at one endpoint.

    high_water_mark: frames of each stream that may wait for a slow subscriber before the next ones pass it by;
    each keeps its buffer, so this bounds the memory too.
    streams: how many streams there will be; a subscriber of all of them has one queue for all.
    encoding: `raw` pixels of `pixel_format`, or `jpeg` of `jpeg_quality` 1 to 100.
    control: where clients ask; `auto` is the next port, or PATH.control.
    shared_memory: clients on this host may read raw frames where they lie.
    max_clients: who may subscribe, and who may ask, at a time.
    admission: keys, without which no endpoint may be reached from other hosts.
    """

    high_water_mark: int = 2
    streams: int = 1
    encoding: Literal["raw", "jpeg"] = "raw"
    jpeg_quality: int = 90
    pixel_format: wire.PixelFormat = "rgb24"
    control: str = "auto"
    shared_memory: bool = True
    max_clients: int = 64
    admission: Admission | None = None

    @property
    def format(self) -> Format:
        return Format(self.pixel_format, self.encoding, self.jpeg_quality if self.encoding == "jpeg" else 90)


class Outlet:
    """Bound sockets and the thread that answers at them.

    SinkError if an address cannot be had, ConfigError if it must not be bound without keys.

    `changed` is notified when somebody begins or ends to want frames. A client that is too slow misses frames; nobody
    else waits for it. Threads may share an outlet.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: str,
        options: PublisherOptions,
        welcome: Callable[[], Welcome],
        changed: threading.Condition,
        gate: Gate,
    ) -> None:
        keys = options.admission.keys if options.admission else None
        for endpoint in (address, options.control):
            if endpoint != "auto":
                checked_bind(endpoint, keys)
        self.options, self.format = options, options.format
        self._changed = changed
        self._subscribed: dict[bytes, set[tuple[int, int]]] = {}  # by topic, the connections by their descriptors
        self._lock = threading.Lock()
        self._closing_s: float | None = None
        self._error: Exception | None = None
        # XPUB tells who subscribes; VERBOSER, each of them and not only the first of a topic.
        self._socket = context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._socket.setsockopt(zmq.SNDHWM, options.high_water_mark * options.streams)
        # libzmq reads what subscribers send until nothing is left, which must not be for ever. A key that was let in
        # takes a place, too, and keeps it.
        self._socket.setsockopt(zmq.RCVHWM, 2)
        self._requests = context.socket(zmq.ROUTER)
        self._requests.setsockopt(zmq.ROUTER_MANDATORY, 1)  # tells when a client has gone
        self._requests.setsockopt(zmq.SNDHWM, 4)  # of these, one at most is a frame, if the client reads
        self._requests.setsockopt(zmq.RCVHWM, 16)
        for each, size in ((self._socket, MAX_GREETING), (self._requests, control.MAX_REQUEST)):
            each.setsockopt(zmq.MAXMSGSIZE, size)
            each.setsockopt(zmq.RCVBUF, RECEIVE_BUFFER)
            each.setsockopt(zmq.LINGER, round(LINGER_S * 1000))
            for option, value in wire.TCP_KEEPALIVE:
                each.setsockopt(option, value)
        topics = SUBSCRIPTIONS * (options.streams + 1) * TOPIC_SIZE
        # Who keeps only the newest message of a socket needs one for each stream.
        gate.guard(self._socket, options.max_clients * options.streams, options.admission, topics)
        # A client asks for frames on one connection to the desk, and pings on another.
        heard = gate.guard(self._requests, 2 * options.max_clients, options.admission, REQUESTS)
        try:
            self._bound = _bind_both(self._socket, self._requests, address, options.control)
            self.address, self.control = (each.endpoint for each in self._bound)
            """Where they are bound; a port that was `*` has its number here."""
        except SinkError:
            self._socket.close(0)
            self._requests.close(0)
            raise
        self._shares = options.shared_memory and options.encoding == "raw"
        self.desk = Desk(self._requests, self.control, welcome, options.max_clients, self._shares, heard)
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._thread = threading.Thread(target=self._serve, name=f"serve {self.address}")
        self._thread.start()

    def wants(self, topic: bytes, stream: str) -> bool:
        """Somebody receives `stream`, whose topic is `topic`."""
        with self._lock:
            self._read_subscriptions()
            return self._is_subscribed(topic) or self.desk.wants(stream)

    def _is_subscribed(self, topic: bytes) -> bool:
        return any(topic.startswith(prefix) for prefix in self._subscribed)

    def wants_shared(self, stream: str) -> bool:
        """Somebody reads the frames of `stream` in shared memory."""
        return self.desk.wants_shared(stream)

    @property
    def receivers(self) -> int:
        """Subscriptions, and clients that ask."""
        with self._lock:
            return sum(map(len, self._subscribed.values())) + len(self.desk)

    def send(self, parcel: Parcel) -> None:
        """Deliver a frame to all who want it; never waits. SinkError if the outlet is closed, or broke."""
        if self._error is not None:
            raise SinkError(f"nobody answers at {self.control!r} any more: {self._error}") from self._error
        with self._lock:
            if self._socket.closed:
                raise SinkError("the publisher is closed")
            if self._is_subscribed(parcel.topic):
                self._socket.send(parcel.message, copy=False)
        if self.desk.offer(parcel):
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # as awake as can be
            self._waker.send(b"\0")

    def _serve(self) -> None:
        try:
            poller = zmq.Poller()
            # The file descriptor: the socket itself may be used under the lock only.
            for each in (self._requests, self._woken, self._socket.getsockopt(zmq.FD)):
                poller.register(each, zmq.POLLIN)
            receivers = 0
            while not self._finished():
                events = dict(poller.poll(TICK_MS if self._closing_s is None else 10))
                if self._woken.fileno() in events:
                    self._woken.recv(4096)
                with self._lock:
                    self._read_subscriptions()
                    if not events:  # a descriptor may have been open still when its end was told
                        self._forget_gone()
                self.desk.serve()
                if self.receivers != receivers:
                    receivers = self.receivers
                    with self._changed:
                        self._changed.notify_all()
        except Exception as error:  # the thread's edge: who sends the next frame gets it
            log.exception("nobody answers at %s any more", self.control)
            self._error = error

    def _finished(self) -> bool:
        closing_s = self._closing_s
        return closing_s is not None and (self.desk.idle or time.monotonic() - closing_s > LINGER_S)

    def _read_subscriptions(self) -> None:
        while not self._socket.closed:
            try:
                event = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            change, topic = event.bytes[:1], event.bytes[1:]
            try:
                descriptor = int(event.get(zmq.SRCFD))
            except zmq.ZMQError:  # libzmq says so for one that has gone, and not for which
                self._forget_gone()
                continue
            socket_id = descriptors.identity(descriptor)
            if change == b"\1" and socket_id is not None:
                self._subscribed.setdefault(topic, set()).add((descriptor, socket_id))
            elif change == b"\0":
                self._keep(topic, {each for each in self._subscribed.get(topic, ()) if each[0] != descriptor})

    def _forget_gone(self) -> None:
        """One that subscribed twice to the same is said to have gone once: look who is still there."""
        for topic, subscribers in list(self._subscribed.items()):
            self._keep(topic, {each for each in subscribers if descriptors.identity(each[0]) == each[1]})

    def _keep(self, topic: bytes, subscribers: set[tuple[int, int]]) -> None:
        if subscribers:
            self._subscribed[topic] = subscribers
        else:
            self._subscribed.pop(topic, None)

    def stop(self) -> None:
        """Begin to end: what was sent is still delivered for half a second at most."""
        self._closing_s = time.monotonic()
        self._wake()

    def close(self) -> None:
        """End; the addresses are free when the context has ended."""
        self.stop()
        self._thread.join()
        with self._lock:
            self._socket.close()
        self._requests.close()
        self._waker.close()
        self._woken.close()

    def free(self) -> None:
        """Give the addresses back; called when the context has ended."""
        for bound in self._bound:
            bound.close()


def _bind_both(
    frames: zmq.Socket[bytes], requests: zmq.Socket[bytes], address: str, control_address: str
) -> tuple[Bound, Bound]:
    """Bind both, and say where; a port `*` is one that the control endpoint finds the next one free of."""
    for attempt in range(PORTS_TRIED):
        bound = _bind(frames, address, f"cannot publish at {address!r}")
        try:
            where = control.control_endpoint(bound.endpoint) if control_address == "auto" else control_address
            return bound, _bind(requests, where, f"cannot answer clients at {where!r} ('publish.control')")
        except (SinkError, ValueError) as error:
            frames.unbind(bound.endpoint)
            bound.close()
            if control_address != "auto" or not address.endswith(":*") or attempt == PORTS_TRIED - 1:
                raise SinkError(str(error)) from error
    raise AssertionError("unreachable")


def _bind(each: zmq.Socket[bytes], address: str, failure: str) -> Bound:
    try:
        return private_path.bind(each, address)
    except (zmq.ZMQError, OSError) as error:
        reason = "the address is in use" if error.errno == zmq.EADDRINUSE else error.strerror or str(error)
        raise SinkError(f"{failure}: {reason}") from error

"""The control endpoint: clients say hello, ask for the next frame, and give back what they borrowed.

Knows the clients and what each has not got yet; nothing of subscriptions or of how frames are made.

A client gets a frame when it asks for one, and the frame is the newest then: what a slow one has not taken is replaced,
and one that keeps up gets all. Nobody waits for anybody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

from . import control, descriptors
from .buffers import Buffer
from .control import Request, Welcome
from .parcel import Parcel
from .wire import VersionError, WireError

log = logging.getLogger(__name__)

MAX_LEASES = 4
"""Frames in shared memory that a client may hold; the next ones it gets as bytes."""
WAIT_S = 5.0
"""How long a request may wait for a frame before it is answered with `none`."""
FORGET_S = 10.0
"""How long after its last request a client is remembered."""
LATELY_S = 0.5
"""How long after its last request a client is expected to ask for more."""
LOOK_S = 0.2
"""How soon it is noticed that a client has gone."""
REQUESTS_A_TURN = 64
"""Requests that are read before frames are handed out again."""


@dataclass
class _Client:
    """Who asks for frames: what it wants, what it has not got yet, what it holds."""

    heard_s: float
    request: Request
    descriptor: int
    """Of the connection."""
    waits: bool = False
    mailbox: OrderedDict[str, Parcel] = field(default_factory=OrderedDict)  # by stream, in the order of turns
    leases: dict[int, Buffer] = field(default_factory=dict)

    def wants(self, stream: str) -> bool:
        return self.request.streams is None or stream in self.request.streams

    def release(self, tokens: tuple[int, ...]) -> None:
        for token in tokens:
            if buffer := self.leases.pop(token, None):
                buffer.release(token)


class Desk:
    """Answers requests at a bound ROUTER socket.

    heard: called with the descriptor of a connection over which a whole request came.

    `offer` and `wants` may be called by any thread; `serve` by the one that waits for the socket.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        name: str,
        welcome: Callable[[], Welcome],
        max_clients: int,
        shared: bool,
        heard: Callable[[int], None],
    ) -> None:
        self._socket, self._name, self._welcome, self._max_clients = socket, name, welcome, max_clients
        self._shared, self._heard = shared, heard
        self._clients: dict[bytes, _Client] = {}
        self._lock = threading.Lock()
        self.malformed = 0
        """Requests that were none."""
        self._logged_s = self._looked_s = float("-inf")

    def __len__(self) -> int:
        """Clients that want frames."""
        return len(self._clients)

    def wants(self, stream: str) -> bool:
        """Somebody wants the frames of `stream`."""
        with self._lock:
            return any(client.wants(stream) for client in self._clients.values())

    def wants_shared(self, stream: str) -> bool:
        """Somebody wants them in shared memory."""
        with self._lock:
            return self._shared and any(
                client.request.shared and client.wants(stream) for client in self._clients.values()
            )

    def offer(self, parcel: Parcel) -> bool:
        """Put a frame into the mailboxes of those who want it; True if one of them waits for it."""
        waited_for = False
        with self._lock:
            for client in self._clients.values():
                if client.wants(parcel.stream):
                    client.mailbox[parcel.stream] = parcel  # a stream that waits already keeps its turn
                    waited_for = waited_for or client.waits
        return waited_for

    @property
    def idle(self) -> bool:
        """No client that asked lately has a frame to come, or one that it has perhaps not mapped yet."""
        with self._lock:
            since_s = time.monotonic() - LATELY_S
            return not any(
                (client.mailbox or client.leases) and client.heard_s > since_s for client in self._clients.values()
            )

    def serve(self) -> None:
        """Read requests, but not more than some, and hand out frames; never waits."""
        self._read()
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._looked_s >= LOOK_S:
                self._forget_gone(now_s)
            for identity, client in list(self._clients.items()):
                self._attend(identity, client, now_s)

    def _read(self) -> None:
        for _ in range(REQUESTS_A_TURN):
            try:
                identity, *parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            descriptor = int(parts[-1].get(zmq.SRCFD))
            self._heard(descriptor)
            try:
                if len(parts) != 1:
                    raise WireError(f"a request must be one part, got {len(parts)}")
                request = control.unpack_request(parts[0].buffer)
            except VersionError as error:
                self._send(identity.bytes, control.pack_answer("refused", reason=str(error)))
                continue
            except WireError as error:
                self._complain(error)
                continue
            with self._lock:
                self._take(identity.bytes, request, descriptor, time.monotonic())

    def _take(self, identity: bytes, request: Request, descriptor: int, now_s: float) -> None:
        client = self._clients.get(identity)
        if client:
            client.heard_s, client.descriptor = now_s, descriptor
            client.release(request.release)
        else:
            for other in [key for key, each in self._clients.items() if each.descriptor == descriptor]:
                del self._clients[other]  # its descriptor is this one's now
            if len(self._clients) >= self._max_clients:
                self._forget_gone(now_s)
        if request.kind == "ping":
            self._send(identity, control.pack_answer("pong", run_id=self._welcome().run_id))
        elif request.kind != "release" and client is None and len(self._clients) >= self._max_clients:
            reason = f"too many clients: {self._max_clients} are served already ('publish.max_clients')"
            self._send(identity, control.pack_answer("refused", reason=reason))
        elif request.kind == "hello":
            self._send(identity, control.pack_welcome(self._welcome()))
        elif request.kind == "next":
            client = client or self._clients.setdefault(identity, _Client(now_s, request, descriptor))
            client.request, client.waits = request, True
            for stream in [stream for stream in client.mailbox if not client.wants(stream)]:
                del client.mailbox[stream]
            self._attend(identity, client, now_s)

    def _forget_gone(self, now_s: float) -> None:
        self._looked_s = now_s
        # A descriptor that was a connection's still is one: of that client, or of one that came later.
        gone = [key for key, client in self._clients.items() if descriptors.identity(client.descriptor) is None]
        for identity in gone:
            del self._clients[identity]  # but not its leases: perhaps it still reads

    def _attend(self, identity: bytes, client: _Client, now_s: float) -> None:
        """Give a client what it waits for, if that is there; forget it, if it has gone."""
        silent_s = now_s - client.heard_s
        if not client.waits:
            here = silent_s < FORGET_S
        elif client.mailbox:
            here = self._hand_over(identity, client, now_s)
        elif not client.request.wait or silent_s > WAIT_S:
            client.waits = False
            here = self._send(identity, control.pack_answer("none"))
        else:
            here = True
        if not here:
            del self._clients[identity]  # with its leases as they are

    def _hand_over(self, identity: bytes, client: _Client, now_s: float) -> bool:
        """Send the frame whose turn it is; False if that cannot be sent."""
        _, parcel = client.mailbox.popitem(last=False)
        client.waits = False
        if not (self._shared and client.request.shared and parcel.shared and len(client.leases) < MAX_LEASES):
            return self._send(identity, parcel.message)
        assert parcel.buffer is not None
        token = parcel.buffer.lease(now_s)
        client.leases[token] = parcel.buffer
        if self._send(identity, parcel.reference(token)):
            return True
        client.release((token,))  # nobody has heard of it
        return False

    def _send(self, identity: bytes, answer: bytes | zmq.Frame) -> bool:
        """Send without waiting; False if the client has gone, or asks and does not read."""
        for _ in range(2):
            try:
                self._socket.send(identity, zmq.SNDMORE | zmq.NOBLOCK)
                self._socket.send(answer, zmq.NOBLOCK, copy=not isinstance(answer, zmq.Frame))
                return True
            except zmq.Again:
                self._socket.getsockopt(zmq.EVENTS)  # only now libzmq looks how much of the queue has been read
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                return False
        return False

    def _complain(self, error: WireError) -> None:
        self.malformed += 1
        if time.monotonic() - self._logged_s >= 1:
            self._logged_s = time.monotonic()
            log.warning("%s: %d malformed requests, the last: %.200s", self._name, self.malformed, error)

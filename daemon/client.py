"""Receive restored frames in another process.

    from daemon.client import Subscriber

    for frame in Subscriber("tcp://127.0.0.1:5555"):
        print(frame.stream, frame.seq, frame.age_s(), frame.pixels.shape)

Knows sockets and the wire format; needs numpy and pyzmq, and nothing else of the project.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

import zmq

from . import wire
from .frame import Frame

Mode = Literal["newest", "queued"]

_POLL_MS = 50
"""How soon `close` is noticed."""


class Subscriber:
    """Frames from a daemon, as an iterator.

    endpoint: where the daemon publishes, e.g. `tcp://127.0.0.1:5555`. The daemon may start later, or restart.
    streams: names of the streams to receive; None for all.
    mode: `newest` gives the newest frame of each stream, each stream in turn, and passes over those that were
    replaced meanwhile; `queued` gives all in the order in which they came, while up to `queue` may wait.
    timeout_s: how long iteration waits for a frame before it raises TimeoutError; None waits for ever.

    A message that is not of this wire format raises `wire.WireError`; the next call goes on after it.
    """

    def __init__(
        self,
        endpoint: str,
        streams: Sequence[str] | None = None,
        *,
        mode: Mode = "newest",
        timeout_s: float | None = None,
        queue: int = 64,
    ) -> None:
        if mode not in ("newest", "queued"):
            raise ValueError(f"mode must be newest or queued, got {mode!r}")
        if isinstance(streams, str) or (streams is not None and not streams):
            raise ValueError(f"streams must be a list of at least one name, or None for all, got {streams!r}")
        if queue < 1:
            raise ValueError(f"queue must be at least 1, got {queue}")
        self._timeout_s, self._newest, self._queue = timeout_s, mode == "newest", queue
        self._waiting: OrderedDict[bytes | int, zmq.Frame] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        try:
            for option, value in ((zmq.RCVHWM, queue), (zmq.LINGER, 0), *wire.TCP_KEEPALIVE):
                self._socket.setsockopt(option, value)
            for topic in [b""] if streams is None else map(wire.topic_bytes, streams):
                self._socket.setsockopt(zmq.SUBSCRIBE, topic)
            self._socket.connect(endpoint)
        except (zmq.ZMQError, wire.WireError) as error:
            self._context.destroy(linger=0)
            if isinstance(error, wire.WireError):
                raise
            example = "tcp://127.0.0.1:5555"
            raise ValueError(f"endpoint must be a ZeroMQ address such as {example}, got {endpoint!r}") from error
        # A daemon: a program that ends without `close` must not hang.
        self._thread = threading.Thread(target=self._receive_all, name=f"receive {endpoint}", daemon=True)
        self._thread.start()

    def _receive_all(self) -> None:
        """Take every message off the socket as it comes: what waits in ZeroMQ's own queues cannot be replaced."""
        count = 0
        while not self._closed:
            if not self._socket.poll(_POLL_MS):
                continue
            message = self._socket.recv(copy=False)
            topic = bytes(message.buffer[: wire.MAX_TOPIC + 1]).split(b"\0", 1)[0]
            count += 1
            with self._changed:
                if not self._newest:
                    self._changed.wait_for(lambda: len(self._waiting) < self._queue or self._closed)
                # A stream that is waiting already keeps its place, so that each has its turn.
                self._waiting[topic if self._newest else count] = message
                self._changed.notify_all()

    def receive(self, timeout_s: float | None = None) -> Frame:
        """The next frame; TimeoutError when none comes within `timeout_s` (None waits for ever)."""
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s):
                    raise TimeoutError(f"no frame came within {timeout_s} s")
                if not self._waiting:
                    raise ValueError("the subscriber is closed")
                _, data = self._waiting.popitem(last=False)
                self._changed.notify_all()
            message = wire.unpack(data.buffer)
            if message.header.get("kind", "frame") == "frame":
                return wire.to_frame(message)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Frame:
        return self.receive(self._timeout_s)

    def close(self) -> None:
        """Disconnect; may be called again, and by any thread."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

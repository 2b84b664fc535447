"""Receive restored frames in another process.

    from daemon.client import Subscriber

    for frame in Subscriber("tcp://127.0.0.1:5555"):
        print(frame.stream, frame.seq, frame.age_s(), frame.pixels.shape)

Knows sockets and the wire format; needs numpy and pyzmq, and nothing else of the project.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Literal, Self

import zmq

from . import wire
from .frame import Frame

Mode = Literal["newest", "queued"]

HEARTBEAT_MS = 500
HEARTBEAT_TIMEOUT_MS = 1500


class Subscriber:
    """Frames from a daemon, as an iterator; used by one thread.

    endpoint: where the daemon publishes, e.g. `tcp://127.0.0.1:5555`. The daemon may start later, or restart.
    streams: names of the streams to receive; None for all.
    mode: `newest` always gives the newest frame of each stream and passes over those it replaced; `queued`
    gives them in turn, up to `queue` waiting.
    timeout_s: how long to wait for a frame before TimeoutError is raised; None waits for ever.

    Frames of a message that is not of this wire format raise `wire.WireError`; iteration may go on after it.
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
        if streams is not None and not streams:
            raise ValueError("streams must name at least one stream, or be None for all")
        self._timeout_s = timeout_s
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._waiting: OrderedDict[str, wire.Message] = OrderedDict()
        self._keep_newest = mode == "newest"
        self._conflates = self._keep_newest and streams is not None
        # CONFLATE keeps one message of the whole socket, not one of each topic: so a socket for each stream.
        topics = [[wire.topic_bytes(name)] for name in streams] if streams is not None else [[b""]]
        if not self._conflates:
            topics = [[topic for group in topics for topic in group]]
        self._sockets: list[zmq.Socket[bytes]] = []
        try:
            for group in topics:
                self._sockets.append(self._connect(endpoint, group, queue))
        except zmq.ZMQError as error:
            self.close()
            raise ValueError(
                f"endpoint must be a ZeroMQ address such as tcp://127.0.0.1:5555, got {endpoint!r}"
            ) from error

    def _connect(self, endpoint: str, topics: list[bytes], queue: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        self._poller.register(socket, zmq.POLLIN)
        if self._conflates:
            socket.setsockopt(zmq.CONFLATE, 1)
            # Only here: a socket whose queue is full does not read heartbeats either, takes the publisher for
            # dead and aborts the process (libzmq issues 3937, 4364, 4767). One that conflates is never full.
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.RCVHWM, 2 if self._keep_newest else queue)
        socket.setsockopt(zmq.LINGER, 0)
        for topic in topics:
            socket.setsockopt(zmq.SUBSCRIBE, topic)
        socket.connect(endpoint)
        return socket

    def receive(self, timeout_s: float | None = None) -> Frame:
        """The next frame; TimeoutError when none comes within `timeout_s` (None: waits for ever)."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._take_all(time.monotonic() if self._waiting else deadline)
            if self._waiting:
                _, message = self._waiting.popitem(last=False)
                if message.header.get("kind", "frame") == "frame":
                    return wire.to_frame(message)
            elif deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"no frame came within {timeout_s} s")

    def _take_all(self, deadline: float | None) -> None:
        """Move what has come into `_waiting`, where a stream's newer message replaces its older one."""
        wait_ms = None if deadline is None else max(0, round((deadline - time.monotonic()) * 1000))
        for socket, _ in self._poller.poll(wait_ms):
            while True:
                try:
                    data = socket.recv(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                message = wire.unpack(data.buffer)
                # In turn: a stream that was served waits behind those that were not.
                key = message.topic if self._keep_newest else f"{message.topic}\0{len(self._waiting)}"
                self._waiting[key] = message
                if not self._keep_newest:
                    return

    def __iter__(self) -> Iterator[Frame]:
        while True:
            yield self.receive(self._timeout_s)

    def close(self) -> None:
        """Disconnect; may be called again."""
        for socket in self._sockets:
            socket.close(0)
        self._sockets.clear()
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

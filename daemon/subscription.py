"""Frames as they are published: the newest of each stream, or all that fit in a queue.

Knows the subscribing socket and its thread; nothing of what is in a frame but its topic.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import zmq

from . import wire
from .connection import KNOCK_S, Bell, Connection

MUTE_S = 2.0
"""How long who is to wait for `subscribe` waits, when somebody publishes and nobody answers at a control endpoint."""


class Subscription:
    """Takes every message off a socket as it comes, in a thread of its own: what waits in ZeroMQ's own queues cannot
    be replaced.

    connect: makes a SUB socket that is connected.
    queue: None keeps the newest frame of each stream, and each stream has its turn; a number keeps so many frames in
    the order in which they came, and then leaves what follows to ZeroMQ.
    trouble: what `take` is to raise while it waits, or None.
    begins: subscribe now; else when `subscribe` is called, or the socket has been connected for MUTE_S.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        streams: Sequence[str] | None,
        queue: int | None,
        trouble: Callable[[], Exception | None],
        *,
        begins: bool = True,
    ) -> None:
        self._queue, self._trouble = queue, trouble
        self._waiting: OrderedDict[bytes | int, zmq.Frame] = OrderedDict()
        self._newest: dict[bytes, zmq.Frame] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._topics = [b""] if streams is None else [wire.topic_bytes(name) for name in streams]
        self._connection, self._bell = connect(), Bell()
        self._wished, self.subscribes = begins, False
        self._subscribe_if_wished()
        # A daemon: a program that ends without `close` must not hang.
        self._thread = threading.Thread(target=self._receive_all, name="subscription", daemon=True)
        self._thread.start()

    @property
    def mode(self) -> str:
        return "newest" if self._queue is None else "queued"

    @property
    def refusal(self) -> str | None:
        return self._connection.refusal

    def subscribe(self) -> None:
        """Begin, if that is not so yet; may be called by any thread."""
        self._wished = True
        self._bell.ring()

    def _subscribe_if_wished(self) -> None:
        met_s = self._connection.met_s
        if not self.subscribes and (self._wished or (met_s is not None and time.monotonic() - met_s > MUTE_S)):
            self.subscribes = True
            for topic in self._topics:
                self._connection.socket.setsockopt(zmq.SUBSCRIBE, topic)

    def _receive_all(self) -> None:
        socket, poller = self._connection.socket, zmq.Poller()
        for waited_for in (socket, self._connection.monitor, self._bell.fileno()):
            poller.register(waited_for, zmq.POLLIN)
        count = 0
        while not self._closed:
            ready = dict(poller.poll(int(KNOCK_S * 1000)))
            if self._bell.fileno() in ready:
                self._bell.hush()
            self._subscribe_if_wished()
            if socket in ready:
                message = socket.recv(copy=False)
                topic = bytes(message.buffer[: wire.MAX_TOPIC + 1]).split(b"\0", 1)[0]
                count += 1
                with self._changed:
                    if self._queue is not None:
                        self._changed.wait_for(self._has_room)
                    # A stream that is waiting already keeps its place, so that each has its turn.
                    self._waiting[topic if self._queue is None else count] = message
                    self._newest[topic] = message
                    self._changed.notify_all()
            if self._connection.monitor in ready or not ready:
                refusal = self.refusal
                self._connection.look()
                if self.refusal != refusal:
                    self.wake()

    def _has_room(self) -> bool:
        return self._closed or self._queue is None or len(self._waiting) < self._queue

    def take(self, timeout_s: float | None, halted: Callable[[], bool]) -> wire.Message | None:
        """The next message; None when `halted`, or when it is closed and nothing waits any more.

        TimeoutError when none comes within `timeout_s`; WireError for one that is not of the wire format.
        """
        with self._changed:
            done = self._changed.wait_for(
                lambda: halted() or self._waiting or self._closed or self._trouble(), timeout_s
            )
            if not done:
                raise TimeoutError
            if halted():
                return None
            if not self._waiting:
                trouble = None if self._closed else self._trouble()
                if trouble is not None:
                    raise trouble
                return None
            _, data = self._waiting.popitem(last=False)
            self._changed.notify_all()
        return wire.unpack(data.buffer)

    def newest(self, stream: str | None) -> list[wire.Message]:
        """The newest message of `stream`, or of each stream, that has come; none is taken."""
        with self._changed:
            messages = [data for topic, data in self._newest.items() if stream is None or topic == stream.encode()]
        return [wire.unpack(data.buffer) for data in messages]

    def wake(self) -> None:
        """Let `take` look at its conditions again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more; what waits already can still be taken. May be called again, and by any thread."""
        self._closed = True
        self.wake()
        self._bell.ring()
        self._thread.join()
        self._connection.close()
        self._bell.close()

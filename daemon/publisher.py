"""Publish restored frames over ZeroMQ.

Knows sockets and the wire format; nothing of where frames come from.
"""

from __future__ import annotations

import errno
import json
import secrets
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import zmq
from numpy.typing import NDArray

from . import wire
from .errors import SinkError
from .frame import Frame, Publication, boot_id

HEADER_ROOM = 1536
"""Bytes that a header takes at most, besides the names in it."""


@dataclass(frozen=True)
class PublisherOptions:
    """How frames are published.

    high_water_mark: frames of each stream that may wait for a slow subscriber before the next ones pass it by;
    each keeps its buffer, so this bounds the memory too.
    streams: how many streams there will be; a subscriber of all of them has one queue for all.
    encoding: `raw` RGB, or `jpeg` of `jpeg_quality` 1 to 100.
    """

    high_water_mark: int = 2
    streams: int = 1
    encoding: Literal["raw", "jpeg"] = "raw"
    jpeg_quality: int = 90


class Publisher:
    """A bound socket that the streams of a daemon share; `stream` gives each its sink.

    A subscriber that is too slow misses frames; nobody else waits for it. Threads may share a publisher.
    """

    def __init__(self, endpoint: str, model: str, options: PublisherOptions | None = None) -> None:
        self._options = options or PublisherOptions()
        self._model, self._run_id = model, secrets.token_hex(8)
        self._context = zmq.Context()
        # XPUB tells who subscribes; VERBOSER, each of them and not only the first of a topic.
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.XPUB)
        self._lock = threading.Lock()
        self._subscribed: dict[bytes, int] = {}
        try:
            for option, value in (
                (zmq.XPUB_VERBOSER, 1),
                (zmq.SNDHWM, self._options.high_water_mark * self._options.streams),
                *wire.TCP_KEEPALIVE,
                (zmq.LINGER, 500),
            ):
                self._socket.setsockopt(option, value)
            _refuse_to_replace(endpoint)
            self._socket.bind(endpoint)
        except (zmq.ZMQError, OSError) as error:
            self._context.destroy(linger=0)
            reason = "the address is in use" if error.errno == zmq.EADDRINUSE else error.strerror or str(error)
            raise SinkError(f"cannot publish at {endpoint!r}: {reason}") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        """Where it is bound; a port that was `*` has its number here."""

    def stream(self, name: str) -> StreamPublisher:
        """The sink of one stream. SinkError for a name that cannot be a topic."""
        try:
            topic = wire.topic_bytes(name)
        except wire.WireError as error:
            raise SinkError(str(error)) from error
        names = len(json.dumps([name, self._model], ensure_ascii=False).encode())
        head_size = -(-(len(topic) + names + HEADER_ROOM) // wire.ALIGNMENT) * wire.ALIGNMENT
        return StreamPublisher(self, topic, head_size, self._options)

    def publication(self) -> Publication:
        return Publication(self._run_id, self._model, boot_id(), time.monotonic_ns(), time.time_ns())

    def wanted(self, topic: bytes) -> bool:
        """Somebody subscribes to `topic`."""
        with self._lock:
            self._read_subscriptions()
            return any(topic.startswith(prefix) for prefix in self._subscribed)

    def await_subscribers(self, count: int, stop: threading.Event) -> None:
        """Wait until `count` subscriptions are there, or `stop` is set."""
        while not stop.is_set():
            with self._lock:
                self._read_subscriptions()
                if sum(self._subscribed.values()) >= count:
                    return
                self._socket.poll(50, zmq.POLLIN)

    def send(self, data: memoryview | bytes) -> zmq.MessageTracker | None:
        """Send one message; the tracker tells when `data` may change again."""
        with self._lock:
            if self._socket.closed:
                raise SinkError("the publisher is closed")
            return self._socket.send(data, copy=False, track=True)

    def _read_subscriptions(self) -> None:
        while not self._socket.closed:
            try:
                event = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if event[:1] in (b"\0", b"\1"):
                prefix, change = event[1:], 1 if event[:1] == b"\1" else -1
                left = self._subscribed.get(prefix, 0) + change
                if left > 0:
                    self._subscribed[prefix] = left
                else:
                    self._subscribed.pop(prefix, None)

    def close(self) -> None:
        """Deliver what was sent (for at most half a second), then free the address."""
        with self._lock:
            self._socket.close()
        self._context.term()
        if path := _socket_file(self.endpoint):
            path.unlink(missing_ok=True)  # libzmq leaves it


def _socket_file(endpoint: str) -> Path | None:
    """The file of an ipc endpoint; None for others, and for names of Linux's abstract namespace."""
    name = endpoint.removeprefix("ipc://")
    return None if name == endpoint or name.startswith("@") else Path(name)


def _refuse_to_replace(endpoint: str) -> None:
    """OSError if an ipc path is taken: libzmq would delete whatever lies there, a live daemon's socket too."""
    path = _socket_file(endpoint)
    if path is None or not path.exists():
        return
    if not path.is_socket():
        raise FileExistsError(errno.EEXIST, "a file of this name exists, and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return  # left behind by a daemon that was killed
    raise OSError(errno.EADDRINUSE, "the address is in use")


class StreamPublisher:
    """The sink of one stream: frames go out from the buffer that they were merged into, without a copy."""

    def __init__(self, publisher: Publisher, topic: bytes, head_size: int, options: PublisherOptions) -> None:
        self._publisher, self._topic, self._head_size, self._options = publisher, topic, head_size, options
        self._lent: deque[NDArray[np.uint8]] = deque()
        self._back: deque[tuple[NDArray[np.uint8], zmq.MessageTracker | None]] = deque()

    def lend(self, frame: Frame) -> NDArray[np.uint8]:
        shape = (frame.height, frame.width, 3)
        size = self._head_size + frame.height * frame.width * 3
        message = self._reuse(size)
        if message is None:
            message = np.empty(size, np.uint8)
        self._lent.append(message)
        return message[self._head_size :].reshape(shape)

    def _reuse(self, size: int) -> NDArray[np.uint8] | None:
        """A buffer that ZeroMQ is done with: fresh memory costs more than the copy into it."""
        for _ in range(len(self._back)):
            message, tracker = self._back.popleft()
            if tracker is not None and not tracker.done:
                self._back.append((message, tracker))
            elif len(message) == size:
                return message
        return None

    def send(self, frame: Frame) -> None:
        message = self._lent.popleft()
        tracker = None
        if self._publisher.wanted(self._topic):
            header = wire.frame_header(frame, self._publisher.publication(), self._options.encoding)
            if self._options.encoding == "jpeg":
                self._publisher.send(wire.pack_head(self._topic, header) + self._jpeg(frame))
            else:
                head = wire.pack_head(self._topic, header, self._head_size)
                message[: self._head_size] = np.frombuffer(head, np.uint8)
                tracker = self._publisher.send(message.data)
        self._back.append((message, tracker))

    def _jpeg(self, frame: Frame) -> bytes:
        quality = [cv2.IMWRITE_JPEG_QUALITY, self._options.jpeg_quality]
        done, data = cv2.imencode(".jpg", frame.pixels[..., ::-1], quality)
        if not done:
            raise SinkError(f"a frame must be at most 65535 pixels a side to be JPEG, got {frame.width}x{frame.height}")
        return data.tobytes()

    def close(self) -> None:
        self._lent.clear()
        self._back.clear()

"""Publish restored frames over ZeroMQ, at one endpoint or several.

Knows which formats are wanted of a frame, and makes each once; nothing of where frames come from.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import zmq
from numpy.typing import NDArray

from . import wire
from .buffers import Buffer, Pool
from .control import Welcome
from .errors import DaemonError, SinkError
from .frame import Frame, Publication, boot_id
from .gate import Gate
from .outlet import Outlet, PublisherOptions
from .parcel import RGB, Format, Parcel, convert, encode_jpeg, head_room, jpeg_parcel, raw_parcel
from .segments import open_segments

__all__ = ["Endpoint", "Publisher", "PublisherOptions", "StreamPublisher"]

STOP_POLL_S = 0.1
"""How soon a request to stop is noticed."""


@dataclass(frozen=True)
class Endpoint:
    """Where frames are published, and how."""

    address: str
    options: PublisherOptions = field(default_factory=PublisherOptions)


class Publisher:
    """The endpoints that the streams of a daemon share; `stream` gives each its sink.

    A client that is too slow misses frames; nobody else waits for it. Threads may share a publisher. SinkError if an
    address cannot be had, ConfigError if it must not be bound without keys.
    """

    def __init__(
        self, endpoints: str | Sequence[Endpoint], model: str, options: PublisherOptions | None = None
    ) -> None:
        if isinstance(endpoints, str):
            endpoints = [Endpoint(endpoints, options or PublisherOptions())]
        self.model, self._run_id = model, secrets.token_hex(8)
        self._names: list[str] = []
        self._changed = threading.Condition()
        wish = any(each.options.shared_memory and each.options.encoding == "raw" for each in endpoints)
        self.segments = open_segments(self._run_id) if wish else None
        self._context = zmq.Context()
        self._gate = Gate(self._context)
        self.outlets: list[Outlet] = []
        try:
            for endpoint in endpoints:
                self.outlets.append(self._open(endpoint))
        except DaemonError:
            self.close()
            raise
        self.endpoint = self.outlets[0].address
        """Where the first is bound; a port that was `*` has its number here."""
        self.control = self.outlets[0].control
        """Where clients ask for what it publishes."""

    def _open(self, endpoint: Endpoint) -> Outlet:
        options = endpoint.options
        shared = self.segments.probe if self.segments and options.shared_memory and options.encoding == "raw" else None

        def welcome() -> Welcome:
            names = tuple(self._names)
            formats = options.encoding, options.pixel_format
            return Welcome(self._run_id, boot_id(), self.model, names, *formats, shared)

        return Outlet(self._context, endpoint.address, options, welcome, self._changed, self._gate)

    def stream(self, name: str) -> StreamPublisher:
        """The sink of one stream. SinkError for a name that cannot be a topic."""
        try:
            topic = wire.topic_bytes(name)
        except wire.WireError as error:
            raise SinkError(str(error)) from error
        self._names.append(name)
        return StreamPublisher(self, name, topic)

    def publication(self) -> Publication:
        return Publication(self._run_id, self.model, boot_id(), time.monotonic_ns(), time.time_ns())

    def wanted(self, stream: str) -> bool:
        """Somebody receives `stream`."""
        topic = wire.topic_bytes(stream)
        return any(outlet.wants(topic, stream) for outlet in self.outlets)

    def await_subscribers(self, count: int, stop: threading.Event, timeout_s: float = math.inf) -> None:
        """Wait until there are `count` subscriptions and clients that ask, `stop` is set, or it took too long."""
        end_s = time.monotonic() + timeout_s
        with self._changed:
            while sum(outlet.receivers for outlet in self.outlets) < count:
                if stop.is_set() or time.monotonic() >= end_s:
                    return
                self._changed.wait(STOP_POLL_S)

    def close(self) -> None:
        """Deliver what was sent (for at most half a second), then free the addresses."""
        for outlet in self.outlets:
            outlet.stop()
        for outlet in self.outlets:
            outlet.close()
        self._gate.close()
        self._context.term()
        for outlet in self.outlets:
            outlet.free()
        if self.segments:
            self.segments.close()


class StreamPublisher:
    """The sink of one stream: frames go out from the buffer that they were merged into, without a copy."""

    def __init__(self, publisher: Publisher, name: str, topic: bytes) -> None:
        self._publisher, self._name, self._topic = publisher, name, topic
        self._head_size = head_room(topic, publisher.model)
        self._lent: deque[Buffer] = deque()
        self._pools: dict[wire.PixelFormat, Pool] = {}

    def lend(self, frame: Frame) -> NDArray[np.uint8]:
        buffer = self._take(frame, RGB)
        self._lent.append(buffer)
        return buffer.array[self._head_size :].reshape(frame.height, frame.width, 3)

    def _take(self, frame: Frame, format: Format) -> Buffer:  # noqa: A002
        pool = self._pools.setdefault(format.pixel_format, Pool(self._publisher.segments))
        shared = any(outlet.format == format and outlet.wants_shared(self._name) for outlet in self._publisher.outlets)
        return pool.take(self._head_size + format.size(frame.height, frame.width), shared=shared)

    def send(self, frame: Frame) -> None:
        buffer = self._lent.popleft()
        parcels: dict[Format, Parcel] = {}
        try:
            for outlet in self._publisher.outlets:
                if not outlet.wants(self._topic, self._name):
                    continue
                if outlet.format not in parcels:
                    parcels[outlet.format] = self._pack(frame, outlet.format, buffer)
                outlet.send(parcels[outlet.format])
        finally:
            if RGB not in parcels:
                buffer.done()

    def _pack(self, frame: Frame, format: Format, merged: Buffer) -> Parcel:  # noqa: A002
        if format.encoding == "jpeg":
            data = encode_jpeg(frame, format)
            return jpeg_parcel(self._topic, frame, self._publisher.publication(), format, data)
        buffer = merged
        if format != RGB:
            buffer = self._take(frame, format)
            convert(frame, format.pixel_format, buffer.array[self._head_size :])
        publication = self._publisher.publication()
        return raw_parcel(self._topic, frame, publication, format.pixel_format, buffer, self._head_size)

    def close(self) -> None:
        self._lent.clear()
        for pool in self._pools.values():
            pool.close()

"""Claims about strangers who send without end, or connect without end: they are thrown out, and change nothing."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import count

import pytest
from streams import numbered

from daemon import descriptors
from daemon import gate as gates
from daemon import outlet as outlets
from daemon.client import Subscriber
from daemon.publisher import Publisher, StreamPublisher

WAIT_S = 30.0
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\0" + bytes(31)

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much came over a connection")


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher("tcp://127.0.0.1:*", "fast")
    yield publisher
    publisher.close()


def connect(endpoint: str) -> socket.socket:
    host, port = endpoint.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


def shake_hands(endpoint: str, kind: bytes) -> socket.socket:
    """A connection on which ZeroMQ takes messages from a socket of `kind`."""
    connection = connect(endpoint)
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    connection.sendall(GREETING + b"\x04" + bytes([len(ready)]) + ready)
    read(connection, 64)
    read(connection, read(connection, 2)[1])
    return connection


def read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return data


def part(body: bytes, *, more: bool = False) -> bytes:
    return bytes([more, len(body)]) + body


def is_thrown_out(connection: socket.socket, data: Callable[[], bytes]) -> bool:
    """Send `data` until that cannot be; at most so much that it could not be missed."""
    with suppress(OSError):
        for _ in range(100_000):
            connection.sendall(data())
        return False
    return True


def goes_on(sink: StreamPublisher, subscriber: Subscriber, seqs: Iterator[int]) -> bool:
    """A frame that is published is received."""
    frame = numbered(next(seqs))
    buffer = sink.lend(frame)
    buffer[:] = frame.pixels
    sink.send(replace(frame, pixels=buffer))
    return subscriber.receive(WAIT_S).seq == frame.seq


@needs_linux
@pytest.mark.parametrize("size", [3, 200])
def test_who_subscribes_without_end_is_thrown_out(publisher: Publisher, size: int) -> None:
    topics, seqs = count(), count()
    sink = publisher.stream("cam")

    def subscriptions() -> bytes:
        return b"".join(part(b"\1" + next(topics).to_bytes(size, "big")) for _ in range(100))

    with Subscriber(publisher.endpoint, mode="newest") as subscriber:
        publisher.await_subscribers(1, threading.Event(), WAIT_S)
        assert goes_on(sink, subscriber, seqs)
        with shake_hands(publisher.endpoint, b"SUB") as flood:
            assert is_thrown_out(flood, subscriptions)
        assert goes_on(sink, subscriber, seqs)
        publisher.outlets[0].wants(b"cam\0", "cam")
        assert publisher.outlets[0].receivers < next(topics)


@needs_linux
@pytest.mark.parametrize("kind", [b"SUB", b"DEALER"])
def test_who_sends_parts_of_a_message_without_end_is_thrown_out(publisher: Publisher, kind: bytes) -> None:
    sink, seqs = publisher.stream("cam"), count()
    endless = part(bytes(250), more=True) * 100
    with Subscriber(publisher.endpoint, mode="newest") as subscriber:
        publisher.await_subscribers(1, threading.Event(), WAIT_S)
        with shake_hands(publisher.endpoint if kind == b"SUB" else publisher.control, kind) as flood:
            assert is_thrown_out(flood, lambda: endless)
        assert goes_on(sink, subscriber, seqs)


@needs_linux
def test_who_asks_much_is_not_thrown_out(publisher: Publisher) -> None:
    ping = part(b'{"version":1,"kind":"ping"}'.ljust(250))
    with shake_hands(publisher.control, b"DEALER") as client:
        for _ in range(2 * outlets.REQUESTS // len(ping)):
            client.sendall(ping)
            _, size = read(client, 2)
            assert b'"pong"' in read(client, size)


def test_of_strangers_who_only_connect_no_more_than_some_are_there(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "STRANGERS", 4)
    room = publisher.outlets[0].options.max_clients + 4
    with ExitStack() as stack:
        first = [stack.enter_context(connect(publisher.endpoint)) for _ in range(room)]
        for each in first:
            read(each, 10)  # ZeroMQ's greeting: it is in
        with suppress(ConnectionResetError), connect(publisher.endpoint) as late:
            while late.recv(64):
                pass


# The system's side.


def test_a_connection_is_told_from_all_others_and_can_be_ended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            known = descriptors.identity(accepted.fileno())
            assert known is not None
            assert known != descriptors.identity(client.fileno())
            assert descriptors.peer(accepted.fileno()) == "127.0.0.1"
            descriptors.cut(client.fileno(), known)  # another one has this descriptor by now
            client.sendall(b"12345")
            assert read(accepted, 5) == b"12345"
            if sys.platform == "linux":
                assert descriptors.received(accepted.fileno()) == 5
            descriptors.cut(accepted.fileno(), known)
            assert accepted.recv(1) == b""


def test_what_is_no_socket_is_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (tmp_path_factory.mktemp("none") / "file").open("w") as file:
        assert descriptors.identity(file.fileno()) is None
        assert descriptors.received(file.fileno()) == 0
        assert descriptors.peer(file.fileno()) == "somebody"
        descriptors.cut(file.fileno(), None)

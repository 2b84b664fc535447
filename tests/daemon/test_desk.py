"""Claims about the control endpoint: raw requests over real sockets, well-meant and hostile."""

from __future__ import annotations

import json
import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from desk_client import DeskClient
from streams import numbered

from daemon import buffers, desk
from daemon.frame import Frame, boot_id
from daemon.publisher import Publisher, PublisherOptions

ENDPOINT = "tcp://127.0.0.1:*"
WAIT_S = 30.0


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    """A publisher at free ports."""
    publisher = Publisher(ENDPOINT, "fast")
    yield publisher
    publisher.close()


@pytest.fixture
def client(publisher: Publisher) -> Iterator[DeskClient]:
    with DeskClient(publisher.control) as client:
        yield client


def publish(publisher: Publisher, *frames: Frame) -> None:
    """Send frames the way a pipeline does, each stream by a sink of its own."""
    sinks = {}
    for frame in frames:
        sink = sinks.setdefault(frame.stream, publisher.stream(frame.stream))
        buffer = sink.lend(frame)
        buffer[:] = frame.pixels
        sink.send(replace(frame, pixels=buffer))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def await_no_client(publisher: Publisher) -> None:
    """Until the desk has forgotten all; who is not served is refused, so asking tells."""
    end_s = time.monotonic() + WAIT_S
    with DeskClient(publisher.control) as other:
        while other.ask("hello").kind == "refused":
            assert time.monotonic() < end_s


# What is said.


def test_hello_is_answered_with_what_is_offered(publisher: Publisher, client: DeskClient) -> None:
    publisher.stream("a")
    publisher.stream("b")
    answer = client.ask("hello")
    assert (answer.topic, answer.kind) == ("\1", "welcome")
    assert (answer.header["model"], answer.header["boot_id"]) == ("fast", boot_id())
    assert answer.header["streams"] == ["a", "b"]
    assert (answer.header["encoding"], answer.header["pixel_format"]) == ("raw", "rgb24")
    shared = answer.header["shared"]
    assert (Path(shared["folder"]) / shared["probe"]).read_text() == shared["probe_value"]


def test_a_ping_is_answered_with_the_run(publisher: Publisher, client: DeskClient) -> None:
    assert client.ask("ping").header == {"version": 1, "kind": "pong", "run_id": publisher.publication().run_id}


def test_who_does_not_wait_is_told_that_there_is_none(publisher: Publisher, client: DeskClient) -> None:
    assert client.ask("next", wait=False).kind == "none"
    publish(publisher, numbered(4))
    answer = client.ask("next", wait=False)
    assert (answer.kind, answer.topic, answer.seq) == ("frame", "cam", 4)
    assert client.ask("next", wait=False).kind == "none"


def test_who_waits_gets_the_frame_when_it_is_there(publisher: Publisher, client: DeskClient) -> None:
    client.join()
    client.say("next")
    publish(publisher, numbered(5))
    assert client.hear().seq == 5


def test_frames_from_before_the_first_request_are_not_given(publisher: Publisher, client: DeskClient) -> None:
    client.ask("hello")
    publish(publisher, numbered(0))
    assert client.ask("next", wait=False).kind == "none"


def test_nobody_is_served_before_the_first_request_for_a_frame(publisher: Publisher, client: DeskClient) -> None:
    client.ask("hello")
    client.ask("ping")
    assert not publisher.wanted("cam")
    client.join(streams=["cam"])
    assert publisher.wanted("cam")
    assert not publisher.wanted("other")


def test_a_second_request_replaces_the_first(publisher: Publisher, client: DeskClient) -> None:
    client.join(streams=["a", "b"])
    client.say("next", streams=["a"])
    client.say("next", streams=["b"])
    client.say("ping")
    assert client.hear().kind == "pong"
    publish(publisher, numbered(0, stream="a"), numbered(1, stream="b"))
    assert client.hear().topic == "b"
    assert client.ask("next", streams=["b"], wait=False).kind == "none"


def test_streams_that_are_not_wanted_any_more_are_not_given(publisher: Publisher, client: DeskClient) -> None:
    client.join()
    publish(publisher, numbered(0, stream="a"), numbered(1, stream="b"))
    assert client.ask("next", streams=["b"]).topic == "b"
    assert client.ask("next", wait=False).kind == "none"


def test_a_request_that_waits_in_vain_is_answered_in_the_end(
    client: DeskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "WAIT_S", 0.1)
    assert client.ask("next").kind == "none"


def test_a_client_of_a_newer_version_is_refused_by_name(client: DeskClient) -> None:
    answer = client.ask("hello", version=2)
    assert answer.kind == "refused"
    assert "wire format 2, this daemon 1: update the daemon" in answer.header["reason"]


# Whose frame it is.


def test_who_keeps_up_gets_all(publisher: Publisher, client: DeskClient) -> None:
    client.join()
    for seq in range(100):
        publish(publisher, numbered(seq))
        assert client.ask("next").seq == seq


def test_who_is_slow_gets_the_newest(publisher: Publisher, client: DeskClient) -> None:
    client.join()
    publish(publisher, *(numbered(seq) for seq in range(10)))
    assert client.ask("next").seq == 9
    assert client.ask("next", wait=False).kind == "none"


def test_a_slow_receiver_gets_no_frame_older_than_the_time_between_frames(
    publisher: Publisher, client: DeskClient
) -> None:
    """Frames come at a pace that the test sets: while the receiver works, three more are published."""
    client.join()
    for turn in range(10):
        publish(publisher, *(numbered(3 * turn + each) for each in range(3)))
        assert client.ask("next").seq == 3 * turn + 2


def test_twenty_streams_come_in_turn_and_a_fast_one_hides_none(publisher: Publisher, client: DeskClient) -> None:
    names = [f"cam{number}" for number in range(20)]
    client.join()
    for turn in range(3):
        publish(publisher, *(numbered(each, stream="cam0") for each in range(5)))
        publish(publisher, *(numbered(turn, stream=name) for name in names))
        given = [client.ask("next") for _ in names]
        assert [answer.topic for answer in given] == names
        assert [answer.seq for answer in given] == [turn] * 20


def test_receivers_do_not_wait_for_each_other(publisher: Publisher, client: DeskClient) -> None:
    with DeskClient(publisher.control) as stalled:
        stalled.join()
        client.join()
        for seq in range(50):
            publish(publisher, numbered(seq))
            assert client.ask("next").seq == seq
        assert stalled.ask("next").seq == 49


def test_a_receiver_that_asks_and_does_not_read_delays_nobody_and_costs_no_memory(
    publisher: Publisher, client: DeskClient
) -> None:
    context = zmq.Context()
    deaf = context.socket(zmq.DEALER)
    deaf.setsockopt(zmq.RCVHWM, 1)
    deaf.connect(publisher.control)
    client.join()
    sink, frame, addresses = publisher.stream("cam"), numbered(0, (720, 1280)), set()
    for seq in range(60):
        deaf.send(b'{"version":1,"kind":"next"}')
        buffer = sink.lend(frame)
        addresses.add(buffer.__array_interface__["data"][0])
        sink.send(replace(frame, seq=seq, pixels=buffer))
        assert client.ask("next").seq == seq
    context.destroy(linger=0)
    assert len(addresses) < 30  # buffers are used again: what is queued is bounded


def test_a_client_that_went_away_is_forgotten() -> None:
    publisher = Publisher(ENDPOINT, "fast", PublisherOptions(max_clients=1))
    with DeskClient(publisher.control) as client:
        client.join()
        assert publisher.wanted("cam")
    await_no_client(publisher)
    assert not publisher.wanted("cam")
    publisher.close()


def test_a_client_that_went_away_while_it_waited_is_forgotten() -> None:
    publisher = Publisher(ENDPOINT, "fast", PublisherOptions(max_clients=1))
    with DeskClient(publisher.control) as client:
        client.join()
        client.say("next")
        with DeskClient(publisher.control) as other:
            assert other.ask("hello").kind == "refused"
    await_no_client(publisher)
    publisher.close()


def test_a_client_that_says_nothing_any_more_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "FORGET_S", 0.1)
    publisher = Publisher(ENDPOINT, "fast", PublisherOptions(max_clients=1))
    with DeskClient(publisher.control) as silent:
        silent.join()
        await_no_client(publisher)
        assert not publisher.wanted("cam")
    publisher.close()


def test_too_many_clients_are_refused_and_those_that_are_served_stay_so() -> None:
    publisher = Publisher(ENDPOINT, "fast", PublisherOptions(max_clients=2))
    clients = [DeskClient(publisher.control) for _ in range(3)]
    clients[0].join()
    clients[1].join()
    for kind in ("hello", "next"):
        answer = clients[2].ask(kind)
        assert answer.kind == "refused"
        assert "too many clients: 2 are served already ('publish.max_clients')" in answer.header["reason"]
    assert clients[2].ask("ping").kind == "pong"
    publish(publisher, numbered(3))
    assert [client.ask("next").seq for client in clients[:2]] == [3, 3]
    for client in clients:
        client.close()
    publisher.close()


# What is hostile.

MALFORMED = [
    b"",
    b"\0" * 100,
    b"hello",
    b"{",
    b"[]",
    b"null",
    b"[" * 4000,
    b'{"version":1}',
    b'{"version":1,"kind":"nonsense"}',
    b'{"version":"1","kind":"ping"}',
    b'{"version":1,"kind":["ping"]}',
    b'{"version":1,"kind":"next","streams":"cam"}',
    b'{"version":1,"kind":"next","streams":[7]}',
    b'{"version":1,"kind":"next","shared":1}',
    b'{"version":1,"kind":"next","release":[-1]}',
    b'{"version":1,"kind":"next","release":[' + b"9" * 4000 + b"]}",
    b'\xff{"version":1,"kind":"ping"}',
    b'{"version":1,"kind":"next","streams":["\\ud800"]}',
]


@pytest.mark.parametrize("request_bytes", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_request_is_dropped(
    publisher: Publisher, client: DeskClient, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    begin_s = time.monotonic()
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            client.socket.send(request_bytes)
        assert client.ask("ping").kind == "pong"
    assert publisher.outlets[0].desk.malformed == 20
    assert 1 <= len(caplog.records) <= 1 + (time.monotonic() - begin_s)  # once a second
    assert len(caplog.text) < 1000


def test_a_request_of_several_parts_is_dropped(client: DeskClient) -> None:
    ping = json.dumps({"version": 1, "kind": "ping"}).encode()
    client.socket.send_multipart([ping] * 100)
    client.socket.send_multipart([b"", ping])
    assert client.ask("hello").kind == "welcome"


@pytest.mark.parametrize("port", ["endpoint", "control"])
def test_a_huge_message_ends_its_connection_and_nothing_else(
    publisher: Publisher, client: DeskClient, port: str
) -> None:
    client.join()
    before = resident_bytes()
    context = zmq.Context()
    hostile = context.socket(zmq.DEALER if port == "control" else zmq.SUB)
    hostile.setsockopt(zmq.LINGER, 0)
    monitor = hostile.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    monitor.setsockopt(zmq.RCVTIMEO, 30_000)
    hostile.connect(getattr(publisher, port))
    huge = bytes(50_000_000 if port == "control" else 100_000)  # libzmq's own subscriber recurses over each byte
    if port == "control":
        hostile.send(huge)
    else:
        hostile.subscribe(huge)
    monitor.recv_multipart()
    publish(publisher, numbered(6))
    assert client.ask("next").seq == 6
    hostile.disable_monitor()
    monitor.close(0)
    del huge
    context.destroy(linger=0)
    assert resident_bytes() - before < 120_000_000  # the two copies that are ours


@pytest.mark.parametrize("port", ["endpoint", "control"])
def test_random_bytes_on_a_port_neither_end_nor_grow_the_daemon(
    publisher: Publisher, client: DeskClient, port: str
) -> None:
    chance = random.Random(port)
    host, _, number = getattr(publisher, port).removeprefix("tcp://").rpartition(":")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)  # of ZMTP 3, so that what follows is taken apart
    ready = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB"

    def attack() -> None:
        for _ in range(200):
            begin = chance.choice([b"", greeting, greeting + ready])
            data = begin + chance.randbytes(chance.randrange(5000))
            with socket.create_connection((host, int(number)), timeout=WAIT_S) as connection:
                try:
                    connection.sendall(data)
                except OSError:
                    continue  # the daemon has hung up already

    attack()
    client.join()
    before = resident_bytes()
    for _ in range(3):
        attack()
    publish(publisher, numbered(7))
    assert client.ask("next").seq == 7
    assert resident_bytes() - before < 20_000_000


def test_random_requests_neither_end_nor_grow_the_daemon(publisher: Publisher, client: DeskClient) -> None:
    chance = random.Random(0)
    words = [b'{"version":1,', b'"kind":', b'"next"', b'"hello"', b'"release":[', b"1]", b",", b"}", b'"streams":null']

    def attack(count: int) -> None:
        with DeskClient(publisher.control) as hostile:
            for _ in range(count):
                data = b"".join(chance.choices(words, k=chance.randrange(8))) + chance.randbytes(chance.randrange(9))
                hostile.socket.send(data)
            assert hostile.ask("ping").kind in ("pong", "welcome", "none", "refused")

    attack(2000)
    before = resident_bytes()
    attack(10_000)
    client.join()
    publish(publisher, numbered(8))
    assert client.ask("next").seq == 8
    assert resident_bytes() - before < 20_000_000


def test_frames_are_published_while_clients_come_and_go(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of the daemon and of clients at once, for the locks' sake."""
    monkeypatch.setattr(buffers, "OVERSTAY_S", WAIT_S)  # a frame is there until it has been looked at
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            with DeskClient(publisher.control) as client:
                client.join(shared=True)
                client.ask("next", shared=True, wait=False)

    guests = [threading.Thread(target=come_and_go) for _ in range(3)]
    for guest in guests:
        guest.start()
    try:
        with DeskClient(publisher.control) as client:
            client.join(shared=True)
            sink = publisher.stream("cam")
            for seq in range(300):
                frame = numbered(seq, (120, 160))
                buffer = sink.lend(frame)
                buffer[:] = frame.pixels
                sink.send(replace(frame, pixels=buffer))
                answer = client.ask("next", shared=True)
                assert (answer.pixels() == frame.pixels).all()
                if "shared" in answer.header:
                    client.say("release", release=[answer.token])
    finally:
        done.set()
        for guest in guests:
            guest.join()

"""Claims about publishing and receiving, over real sockets and from other processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from streams import numbered

from daemon import wire
from daemon.client import Subscriber
from daemon.errors import SinkError
from daemon.frame import Frame, Publication
from daemon.publisher import Publisher, PublisherOptions

WAIT_S = 30.0
ENDPOINT = "tcp://127.0.0.1:*"


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    """A publisher at a free port."""
    publisher = Publisher(ENDPOINT, "fast")
    yield publisher
    publisher.close()


def publish(publisher: Publisher, frame: Frame) -> None:
    """Send one frame the way a pipeline does."""
    sink = publisher.stream(frame.stream)
    buffer = sink.lend(frame)
    buffer[:] = frame.pixels
    sink.send(replace(frame, pixels=buffer))


def frame_bytes(frame: Frame) -> bytes:
    publication = Publication("run", "fast", "boot", 1, 2)
    head = wire.pack_head(wire.topic_bytes(frame.stream), wire.frame_header(frame, publication, "raw"))
    return head + frame.pixels.tobytes()


def await_subscribers(publisher: Publisher, count: int) -> None:
    publisher.await_subscribers(count, threading.Event())


def test_a_frame_arrives_as_it_was_sent(publisher: Publisher) -> None:
    frame = numbered(5, (33, 47), stream="cam")
    with Subscriber(publisher.endpoint) as subscriber:
        await_subscribers(publisher, 1)
        publish(publisher, frame)
        received = subscriber.receive(WAIT_S)
    np.testing.assert_array_equal(received.pixels, frame.pixels)
    assert (received.seq, received.pts, received.time_base) == (frame.seq, frame.pts, frame.time_base)
    assert received.publication is not None
    assert received.publication.model == "fast"
    assert 0 <= received.age_s() < WAIT_S


def test_a_subscriber_of_cam1_does_not_get_cam10(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint, ["cam1"], mode="queued") as subscriber:
        await_subscribers(publisher, 1)
        publish(publisher, numbered(0, stream="cam10"))
        publish(publisher, numbered(1, stream="cam1"))
        assert subscriber.receive(WAIT_S).stream == "cam1"


def test_queued_frames_come_in_turn_and_all_of_them(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint, mode="queued") as subscriber:
        await_subscribers(publisher, 1)
        for seq in range(30):
            publish(publisher, numbered(seq))
            assert subscriber.receive(WAIT_S).seq == seq


@pytest.mark.parametrize("streams", [None, ["a", "b"]])
def test_newest_gives_the_newest_frame_of_each_stream(streams: list[str] | None) -> None:
    publisher = Publisher(ENDPOINT, "fast", PublisherOptions(high_water_mark=100))  # so that none is dropped there
    with Subscriber(publisher.endpoint, streams, mode="newest") as subscriber:
        await_subscribers(publisher, 1 if streams is None else 2)  # topics
        for seq in range(20):
            for name in ("a", "b"):
                publish(publisher, numbered(seq, stream=name))
        last: dict[str, int] = {}
        while len(last) < 2 or set(last.values()) != {19}:
            frame = subscriber.receive(WAIT_S)
            assert frame.seq >= last.get(frame.stream, 0)
            last[frame.stream] = frame.seq
    publisher.close()


def test_a_frame_that_is_kept_does_not_change_when_later_ones_are_sent(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint, mode="queued") as subscriber:
        await_subscribers(publisher, 1)
        sink = publisher.stream("cam")
        kept = []
        for seq in range(10):
            frame = numbered(seq, (120, 200))
            buffer = sink.lend(frame)
            buffer[:] = frame.pixels
            sink.send(replace(frame, pixels=buffer))
            kept.append(subscriber.receive(WAIT_S))
    for seq, frame in enumerate(kept):
        np.testing.assert_array_equal(frame.pixels, numbered(seq, (120, 200)).pixels)


def test_a_stalled_subscriber_neither_blocks_the_publisher_nor_grows_it() -> None:
    options = PublisherOptions(high_water_mark=2)
    publisher = Publisher(ENDPOINT, "fast", options)
    context = zmq.Context()
    stalled = context.socket(zmq.SUB)
    stalled.setsockopt(zmq.RCVHWM, 1)
    stalled.subscribe(b"")
    stalled.connect(publisher.endpoint)
    await_subscribers(publisher, 1)
    sink = publisher.stream("cam")
    addresses = set()
    for seq in range(60):
        frame = numbered(0, (720, 1280))
        buffer = sink.lend(frame)
        addresses.add(buffer.__array_interface__["data"][0])
        sink.send(replace(frame, seq=seq, pixels=buffer))
    context.destroy(linger=0)
    publisher.close()
    assert len(addresses) < 20  # buffers are used again: what is queued is bounded


def test_nothing_is_sent_while_nobody_listens(publisher: Publisher) -> None:
    assert not publisher.wanted("cam")
    with Subscriber(publisher.endpoint, ["cam"]):
        await_subscribers(publisher, 1)
        assert publisher.wanted("cam")
        assert not publisher.wanted("other")


def test_jpeg_frames_are_decoded_by_the_subscriber() -> None:
    publisher = Publisher(ENDPOINT, "fast", PublisherOptions(encoding="jpeg", jpeg_quality=95))
    ramp = np.linspace(0, 255, 128).astype(np.uint8)
    frame = replace(numbered(0), pixels=np.stack([np.tile(ramp, (64, 1))] * 3, axis=2))
    with Subscriber(publisher.endpoint) as subscriber:
        await_subscribers(publisher, 1)
        publish(publisher, frame)
        received = subscriber.receive(WAIT_S)
    publisher.close()
    assert np.abs(received.pixels.astype(int) - frame.pixels).max() <= 3


def test_a_subscriber_that_waits_in_vain_says_so(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint) as subscriber, pytest.raises(TimeoutError, match="no frame came within"):
        subscriber.receive(0.05)


def test_a_foreign_message_is_refused_and_the_next_frame_still_comes() -> None:
    context = zmq.Context()
    foreign = context.socket(zmq.XPUB)
    port = foreign.bind_to_random_port("tcp://127.0.0.1")
    with Subscriber(f"tcp://127.0.0.1:{port}", mode="queued") as subscriber:
        assert foreign.recv() == b"\1"
        foreign.send(b"not a frame")
        foreign.send(frame_bytes(numbered(8)))
        with pytest.raises(wire.WireError):
            next(subscriber)
        assert next(subscriber).seq == 8
    context.destroy(linger=0)


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://", "http://127.0.0.1:80"])
def test_an_impossible_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint must be a ZeroMQ address"):
        Subscriber(endpoint)


def test_an_address_in_use_is_refused_by_name(publisher: Publisher) -> None:
    with pytest.raises(SinkError, match=r"cannot publish at 'tcp://127.*: the address is in use"):
        Publisher(publisher.endpoint, "fast")


def test_another_process_receives_with_three_lines(publisher: Publisher) -> None:
    program = (
        "import sys; from daemon.client import Subscriber\n"
        "for frame in Subscriber(sys.argv[1], timeout_s=60):\n"
        "    print(frame.seq, frame.pixels.sum(), frame.age_s() >= 0); break\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, publisher.endpoint], stdout=subprocess.PIPE, text=True, cwd=repository()
    ) as process:
        await_subscribers(publisher, 1)
        frame = numbered(11)
        publish(publisher, frame)
        output, _ = process.communicate(timeout=60)
    assert output.split() == ["11", str(frame.pixels.sum()), "True"]


def test_the_client_loads_neither_opencv_nor_the_rest_of_the_project() -> None:
    program = (
        "import sys, daemon.client\n"
        "heavy = {'cv2', 'av', 'openvino', 'torch', 'engine', 'pydantic'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, cwd=repository()
    )
    assert answer.stdout.strip() == "[]"


def test_a_stream_with_the_longest_name_is_published(publisher: Publisher) -> None:
    name = "é" * 120 + '"\\'
    with Subscriber(publisher.endpoint, [name]) as subscriber:
        await_subscribers(publisher, 1)
        publish(publisher, numbered(1, stream=name))
        assert subscriber.receive(WAIT_S).stream == name


def test_a_slow_reader_of_all_streams_gets_frames_of_every_stream() -> None:
    names = [f"cam{i}" for i in range(8)]
    publisher = Publisher(ENDPOINT, "fast", PublisherOptions(streams=len(names)))
    with Subscriber(publisher.endpoint) as subscriber:
        await_subscribers(publisher, 1)
        seen = set()
        for seq in range(40):
            for name in names:
                publish(publisher, numbered(seq, stream=name))
            seen.add(subscriber.receive(WAIT_S).stream)
    publisher.close()
    assert seen == set(names)


def test_a_file_at_the_address_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(SinkError, match="is no socket"):
        Publisher(f"ipc://{path}", "fast")
    assert path.read_text() == "precious"


def test_the_address_of_a_living_daemon_is_not_taken_from_it(tmp_path: Path) -> None:
    first = Publisher(f"ipc://{tmp_path}/frames", "fast")
    with pytest.raises(SinkError, match="the address is in use"):
        Publisher(first.endpoint, "fast")
    with Subscriber(first.endpoint) as subscriber:
        await_subscribers(first, 1)
        publish(first, numbered(3))
        assert subscriber.receive(WAIT_S).seq == 3
    first.close()


def test_the_address_that_a_killed_daemon_left_behind_is_taken(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from daemon.publisher import Publisher\n"
        "Publisher(sys.argv[1], 'fast'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    endpoint = f"ipc://{tmp_path}/frames"
    subprocess.run([sys.executable, "-c", program, endpoint], cwd=repository(), timeout=60, check=False)
    assert (tmp_path / "frames").is_socket()
    Publisher(endpoint, "fast").close()
    assert not (tmp_path / "frames").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"), [({"streams": "cam1"}, "must be a list"), ({"queue": 0}, "at least 1")]
)
def test_impossible_wishes_of_a_subscriber_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Subscriber("tcp://127.0.0.1:5555", **arguments)


def repository() -> Path:
    return Path(__file__).parents[2]

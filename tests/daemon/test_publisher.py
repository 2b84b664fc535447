"""Claims about endpoints, formats and shared memory, as clients see them: real sockets, files and processes."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import zmq
from desk_client import Answer, DeskClient
from streams import numbered

from daemon import buffers
from daemon.desk import MAX_LEASES
from daemon.errors import ConfigError, SinkError
from daemon.frame import Frame
from daemon.publisher import Endpoint, Publisher, PublisherOptions, StreamPublisher

WAIT_S = 30.0
ENDPOINT = "tcp://127.0.0.1:*"
FOLDER = Path("/dev/shm")
SIZE = (120, 160)

needs_shared_memory = pytest.mark.skipif(not FOLDER.is_dir(), reason="there is no shared memory here")


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    """A publisher at free ports."""
    publisher = Publisher(ENDPOINT, "fast")
    yield publisher
    publisher.close()


def send(sink: StreamPublisher, frame: Frame) -> None:
    """Send one frame the way a pipeline does."""
    buffer = sink.lend(frame)
    buffer[:] = frame.pixels
    sink.send(replace(frame, pixels=buffer))


def frame_files(publisher: Publisher) -> set[str]:
    """The files in shared memory that have frames in them."""
    run_id = publisher.publication().run_id
    return {path.name for path in FOLDER.glob(f"deblurd-{run_id}-*")} - {f"deblurd-{run_id}-probe"}


def repository() -> Path:
    return Path(__file__).parents[2]


# Endpoints.


def test_clients_ask_at_the_next_port(publisher: Publisher) -> None:
    host, _, port = publisher.endpoint.rpartition(":")
    assert publisher.control == f"{host}:{int(port) + 1}"
    with DeskClient(publisher.control) as client:
        assert client.ask("ping").kind == "pong"


def test_clients_of_an_ipc_endpoint_ask_beside_it(tmp_path: Path) -> None:
    publisher = Publisher(f"ipc://{tmp_path}/frames", "fast")
    assert publisher.control == f"ipc://{tmp_path}/frames.control"
    with DeskClient(publisher.control) as client:
        assert client.ask("ping").kind == "pong"
    publisher.close()
    assert not (tmp_path / "frames").exists()
    assert not (tmp_path / "frames.control").exists()


def test_clients_ask_where_the_settings_say(tmp_path: Path) -> None:
    publisher = Publisher(ENDPOINT, "fast", PublisherOptions(control=f"ipc://{tmp_path}/ask"))
    with DeskClient(f"ipc://{tmp_path}/ask") as client:
        assert client.ask("ping").kind == "pong"
    publisher.close()


def test_a_control_endpoint_in_use_is_refused_by_name(publisher: Publisher) -> None:
    reason = r"cannot answer clients at 'tcp://127.*' \('publish.control'\): the address is in use"
    with pytest.raises(SinkError, match=reason):
        Publisher(ENDPOINT, "fast", PublisherOptions(control=publisher.control))


def test_of_two_endpoints_that_cannot_both_be_had_neither_is_kept(publisher: Publisher, tmp_path: Path) -> None:
    endpoints = [Endpoint(f"ipc://{tmp_path}/frames"), Endpoint(publisher.endpoint)]
    with pytest.raises(SinkError, match="the address is in use"):
        Publisher(endpoints, "fast")
    Publisher(endpoints[:1], "fast").close()


@pytest.mark.parametrize("options", [None, PublisherOptions(control="tcp://0.0.0.0:*")])
def test_what_other_hosts_can_reach_needs_keys(options: PublisherOptions | None) -> None:
    with pytest.raises(ConfigError, match="can be reached from other hosts and must have keys"):
        Publisher(ENDPOINT if options else "tcp://0.0.0.0:*", "fast", options)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until it is so: the daemon's own thread makes it so."""
    deadline, tick = time.monotonic() + WAIT_S, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        tick.wait(0.01)


def test_who_subscribed_twice_is_gone_all_the_same(publisher: Publisher) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as first, context.socket(zmq.SUB) as second:
        for subscriber in (first, second):
            subscriber.subscribe(b"cam\0")
            subscriber.subscribe(b"cam\0")
            subscriber.connect(publisher.endpoint)
        publisher.await_subscribers(2, threading.Event(), WAIT_S)
        assert publisher.outlets[0].receivers == 2
        first.close()
        eventually(lambda: publisher.outlets[0].receivers == 1)
        assert publisher.wanted("cam")
    eventually(lambda: not publisher.wanted("cam"))


def test_who_wants_a_stream_no_more_is_counted_no_more(publisher: Publisher) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as first, context.socket(zmq.SUB) as second:
        for subscriber in (first, second):
            subscriber.subscribe(b"cam\0")
            subscriber.connect(publisher.endpoint)
        publisher.await_subscribers(2, threading.Event(), WAIT_S)
        first.unsubscribe(b"cam\0")
        eventually(lambda: publisher.outlets[0].receivers == 1)
        assert publisher.wanted("cam")
        second.unsubscribe(b"cam\0")
        eventually(lambda: not publisher.wanted("cam"))


def test_after_the_end_nothing_is_sent() -> None:
    publisher = Publisher(ENDPOINT, "fast")
    with DeskClient(publisher.control) as client:
        client.join()
        sink = publisher.stream("cam")
        buffer = sink.lend(numbered(0))
        publisher.close()
        with pytest.raises(SinkError, match="the publisher is closed"):
            sink.send(replace(numbered(0), pixels=buffer))


def test_the_last_frame_is_delivered_before_the_end() -> None:
    publisher = Publisher(ENDPOINT, "fast")
    with DeskClient(publisher.control) as client:
        client.join()
        send(publisher.stream("cam"), numbered(1))
        closing = threading.Thread(target=publisher.close)
        closing.start()
        assert client.ask("next").seq == 1
        closing.join()


def test_waiting_for_receivers_counts_those_who_ask(publisher: Publisher) -> None:
    context = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    subscriber.subscribe(b"")
    subscriber.connect(publisher.endpoint)
    with DeskClient(publisher.control) as client:
        client.join()
        publisher.await_subscribers(2, threading.Event())
    context.destroy(linger=0)


# Formats.


def pixels_of(answer: Answer, folder: Path = FOLDER) -> np.ndarray:  # type: ignore[type-arg]
    """The bytes of a raw frame, wherever they are."""
    if answer.header["encoding"] == "raw":
        return np.frombuffer(answer.payload, np.uint8)
    place = answer.header["shared"]
    return np.memmap(folder / place["file"], np.uint8, "r", place["offset"], place["size"])


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=needs_shared_memory)])
@pytest.mark.parametrize("pixel_format", ["rgb24", "bgr24", "gray8"])
def test_frames_come_in_the_pixel_format_of_the_endpoint(pixel_format: str, shared: bool) -> None:
    publisher = Publisher(ENDPOINT, "fast", PublisherOptions(pixel_format=pixel_format))  # type: ignore[arg-type]
    frame = numbered(3, (33, 47))
    expected = {
        "rgb24": frame.pixels,
        "bgr24": frame.pixels[..., ::-1],
        "gray8": cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2GRAY),
    }[pixel_format]
    with DeskClient(publisher.control) as client:
        assert client.ask("hello").header["pixel_format"] == pixel_format
        client.join(shared=shared)
        send(publisher.stream("cam"), frame)
        answer = client.ask("next", shared=shared)
        assert answer.header["pixel_format"] == pixel_format
        assert answer.header["encoding"] == ("shared" if shared else "raw")
        np.testing.assert_array_equal(pixels_of(answer), expected.reshape(-1))
    publisher.close()


@pytest.mark.parametrize("pixel_format", ["rgb24", "bgr24", "gray8"])
def test_jpeg_frames_show_the_same(pixel_format: str) -> None:
    options = PublisherOptions(encoding="jpeg", jpeg_quality=95, pixel_format=pixel_format)  # type: ignore[arg-type]
    publisher = Publisher(ENDPOINT, "fast", options)
    ramp = np.linspace(0, 255, 128).astype(np.uint8)
    frame = replace(
        numbered(0), pixels=np.stack([np.tile(ramp, (64, 1)), np.full((64, 128), 90, np.uint8)] * 2, 2)[..., :3]
    )
    with DeskClient(publisher.control) as client:
        assert client.ask("hello").header["shared"] is None
        client.join(shared=True)
        send(publisher.stream("cam"), frame)
        answer = client.ask("next", shared=True)
        assert answer.header["encoding"] == "jpeg"
        decoded = cv2.imdecode(np.frombuffer(answer.payload, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    expected = frame.pixels[..., ::-1] if pixel_format != "gray8" else cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2GRAY)
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).mean() < 3
    publisher.close()


def test_every_endpoint_has_its_own_format_and_its_own_clients() -> None:
    endpoints = [Endpoint(ENDPOINT), Endpoint(ENDPOINT, PublisherOptions(encoding="jpeg"))]
    publisher = Publisher(endpoints, "fast")
    raw, jpeg = (DeskClient(outlet.control) for outlet in publisher.outlets)
    assert raw.ask("ping").header["run_id"] == jpeg.ask("ping").header["run_id"]
    sink = publisher.stream("cam")
    raw.join()
    jpeg.join()
    send(sink, numbered(1))
    answers = [raw.ask("next"), jpeg.ask("next")]
    assert [answer.header["encoding"] for answer in answers] == ["raw", "jpeg"]
    assert [answer.seq for answer in answers] == [1, 1]
    raw.close()
    jpeg.close()
    publisher.close()


# Shared memory.


@needs_shared_memory
def test_a_frame_in_shared_memory_has_the_same_header_and_pixels_and_is_private(publisher: Publisher) -> None:
    frame = numbered(2, SIZE)
    with DeskClient(publisher.control) as client, DeskClient(publisher.control) as other:
        client.join(shared=True)
        other.join()
        send(publisher.stream("cam"), frame)
        answer, raw = client.ask("next", shared=True), other.ask("next")
        place = answer.header.pop("shared")
        assert {**answer.header, "encoding": "raw"} == raw.header
        assert (answer.topic, answer.payload) == ("cam", b"")
        pixels = np.memmap(FOLDER / place["file"], np.uint8, "r", place["offset"], place["size"])
        np.testing.assert_array_equal(pixels.reshape(frame.pixels.shape), frame.pixels)
        np.testing.assert_array_equal(raw.pixels(), frame.pixels)
        assert (FOLDER / place["file"]).stat().st_mode & 0o777 == 0o600


@needs_shared_memory
def test_nothing_lies_in_shared_memory_that_nobody_reads_there(publisher: Publisher) -> None:
    with DeskClient(publisher.control) as client:
        client.join()
        send(publisher.stream("cam"), numbered(0))
        client.ask("next")
        assert frame_files(publisher) == set()


@needs_shared_memory
def test_a_frame_that_is_held_never_changes_and_who_holds_many_gets_bytes(publisher: Publisher) -> None:
    sink = publisher.stream("cam")
    with DeskClient(publisher.control) as client:
        client.join(shared=True)
        kept = []
        for seq in range(10):
            send(sink, numbered(seq, SIZE))
            kept.append(client.ask("next", shared=True))
            kept[-1].held = kept[-1].pixels()  # type: ignore[attr-defined]
        encodings = [answer.header["encoding"] for answer in kept]
        assert encodings == ["shared"] * MAX_LEASES + ["raw"] * (10 - MAX_LEASES)
        for seq, answer in enumerate(kept):
            np.testing.assert_array_equal(answer.held, numbered(seq, SIZE).pixels)  # type: ignore[attr-defined]
        send(sink, numbered(10, SIZE))
        answer = client.ask("next", shared=True, release=[kept[0].token])
        assert answer.header["encoding"] == "shared"


@needs_shared_memory
def test_what_is_given_back_is_used_again(publisher: Publisher) -> None:
    sink = publisher.stream("cam")
    with DeskClient(publisher.control) as client:
        client.join(shared=True)
        release: list[int] = []
        for seq in range(50):
            send(sink, numbered(seq, SIZE))
            answer = client.ask("next", shared=True, release=release)
            np.testing.assert_array_equal(answer.pixels(), numbered(seq, SIZE).pixels)
            release = [answer.token]
        assert len(frame_files(publisher)) < 10


@needs_shared_memory
def test_tokens_of_others_and_made_up_ones_are_not_taken(publisher: Publisher) -> None:
    sink = publisher.stream("cam")
    with DeskClient(publisher.control) as client, DeskClient(publisher.control) as thief:
        client.join(shared=True)
        thief.join()
        send(sink, numbered(0, SIZE))
        held = client.ask("next", shared=True)
        pixels = held.pixels()
        thief.say("release", release=[held.token, *range(100)])
        for seq in range(1, 10):
            send(sink, numbered(seq, SIZE))
            thief.ask("next")
        np.testing.assert_array_equal(pixels, numbered(0, SIZE).pixels)


@needs_shared_memory
def test_who_holds_a_frame_for_too_long_keeps_it_and_the_daemon_goes_on_without_it(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "OVERSTAY_S", 0.0)
    sink = publisher.stream("cam")
    with DeskClient(publisher.control) as client:
        client.join(shared=True)
        send(sink, numbered(0, SIZE))
        held = client.ask("next", shared=True)
        pixels = held.pixels()
        for seq in range(1, 10):
            send(sink, numbered(seq, SIZE))
        assert held.header["shared"]["file"] not in frame_files(publisher)
        assert len(frame_files(publisher)) < 10
        np.testing.assert_array_equal(pixels, numbered(0, SIZE).pixels)


@needs_shared_memory
def test_a_killed_reader_costs_nothing(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "OVERSTAY_S", 0.0)
    program = (
        "import sys; sys.path.insert(0, 'tests'); from desk_client import DeskClient\n"
        "client = DeskClient(sys.argv[1]); client.join(shared=True); print('here', flush=True)\n"
        "answer = client.ask('next', shared=True); pixels = answer.pixels(); print('held', flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", program, publisher.control]
    sink = publisher.stream("cam")
    with (
        DeskClient(publisher.control) as client,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repository()) as reader,
    ):
        assert reader.stdout is not None
        client.join()
        assert reader.stdout.readline() == "here\n"
        send(sink, numbered(0, SIZE))
        assert reader.stdout.readline() == "held\n"
        reader.send_signal(signal.SIGKILL)
        reader.wait()
        client.ask("next")
        for seq in range(1, 20):
            send(sink, numbered(seq, SIZE))
            assert client.ask("next").seq == seq
        assert len(frame_files(publisher)) < 10


@needs_shared_memory
def test_twenty_streams_in_shared_memory(publisher: Publisher) -> None:
    sinks = [publisher.stream(f"cam{number}") for number in range(20)]
    with DeskClient(publisher.control) as client:
        client.join(shared=True)
        release: list[int] = []
        for turn in range(3):
            for number, sink in enumerate(sinks):
                send(sink, numbered(20 * turn + number, SIZE, stream=f"cam{number}"))
            for number in range(20):
                answer = client.ask("next", shared=True, release=release)
                assert answer.topic == f"cam{number}"
                np.testing.assert_array_equal(answer.pixels(), numbered(20 * turn + number, SIZE).pixels)
                release = [answer.token]


@needs_shared_memory
def test_where_shared_memory_is_full_frames_come_as_bytes(publisher: Publisher) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with DeskClient(publisher.control) as client:
        client.join(shared=True)
        sink = publisher.stream("cam")
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            for seq in range(3):
                send(sink, numbered(seq, SIZE))
                answer = client.ask("next", shared=True)
                assert (answer.header["encoding"], answer.seq) == ("raw", seq)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert frame_files(publisher) == set()


def test_shared_memory_can_be_refused() -> None:
    publisher = Publisher(ENDPOINT, "fast", PublisherOptions(shared_memory=False))
    with DeskClient(publisher.control) as client:
        assert client.ask("hello").header["shared"] is None
        client.join(shared=True)
        send(publisher.stream("cam"), numbered(0))
        assert client.ask("next", shared=True).header["encoding"] == "raw"
    publisher.close()


@needs_shared_memory
def test_an_endpoint_without_shared_memory_gives_none_though_another_has_it() -> None:
    endpoints = [Endpoint(ENDPOINT), Endpoint(ENDPOINT, PublisherOptions(shared_memory=False))]
    publisher = Publisher(endpoints, "fast")
    clients = [DeskClient(outlet.control) for outlet in publisher.outlets]
    for client in clients:
        client.join(shared=True)
    send(publisher.stream("cam"), numbered(0))
    encodings = [client.ask("next", shared=True).header["encoding"] for client in clients]
    assert encodings == ["shared", "raw"]
    for client in clients:
        client.close()
    publisher.close()


@needs_shared_memory
def test_a_stream_that_changes_its_size_goes_on(publisher: Publisher) -> None:
    sink = publisher.stream("cam")
    with DeskClient(publisher.control) as client:
        client.join(shared=True)
        release: list[int] = []
        for seq, size in enumerate([(40, 60), (120, 160), (40, 60), (41, 61)]):
            send(sink, numbered(seq, size))
            answer = client.ask("next", shared=True, release=release)
            np.testing.assert_array_equal(answer.pixels(), numbered(seq, size).pixels)
            release = [answer.token]


@needs_shared_memory
def test_no_file_is_left_at_the_end() -> None:
    publisher = Publisher(ENDPOINT, "fast")
    with DeskClient(publisher.control) as client:
        client.join(shared=True)
        send(publisher.stream("cam"), numbered(0))
        client.ask("next", shared=True)
    publisher.close()
    assert list(FOLDER.glob(f"deblurd-{publisher.publication().run_id}*")) == []

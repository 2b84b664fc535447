"""Claims about receiving, in every mode, from a publisher in another process.

Where `deblurd_client` is installed, it is what is tested: nothing of the daemon needs to be there.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from publishing import PublisherProcess, pixels

try:
    from deblurd_client import Frame, Keys, PublisherLostError, RefusedError, Subscriber, WireError
    from deblurd_client.keys import new_keys
except ImportError:
    from daemon.client import PublisherLostError, RefusedError, Subscriber
    from daemon.frame import Frame
    from daemon.keys import Keys, new_keys
    from daemon.wire import WireError

WAIT_S = 30.0
NOTICED_S = 2.0
"""How soon a dead publisher is noticed."""
MODES = ["newest", "queued", "paced", "shared", "auto"]
SHARED_MEMORY = Path("/dev/shm").is_dir()


@pytest.fixture
def publisher() -> Iterator[PublisherProcess]:
    """A publisher at a free port."""
    with PublisherProcess() as publisher:
        yield publisher


def same(frame: Frame, seq: int) -> bool:
    return frame.seq == seq and np.array_equal(frame.pixels, pixels(seq))


def eventually(subscriber: Subscriber, **attributes: object) -> None:
    """Wait until the subscriber has these attributes; what it has changes in its own threads."""
    deadline, tick = time.monotonic() + WAIT_S, threading.Event()
    while {name: getattr(subscriber, name) for name in attributes} != attributes:
        assert time.monotonic() < deadline, f"never {attributes}, but {subscriber.mode} and {subscriber.state}"
        tick.wait(0.01)


@pytest.mark.parametrize("mode", MODES)
def test_frames_come_as_they_were_sent_in_turn(publisher: PublisherProcess, mode: Any) -> None:
    with Subscriber(publisher.endpoint, mode=mode) as subscriber:
        publisher.await_receivers()
        for seq in range(20):
            publisher.publish(seq)
            frame = subscriber.receive(WAIT_S)
            assert same(frame, seq)
            assert frame.stream == "cam"
            assert frame.publication is not None
            assert frame.publication.run_id == publisher.run_id
            assert 0 <= frame.age_s() < WAIT_S
            assert not frame.pixels.flags.writeable


@pytest.mark.parametrize("mode", MODES)
def test_frames_that_are_kept_never_change(publisher: PublisherProcess, mode: Any) -> None:
    with Subscriber(publisher.endpoint, mode=mode) as subscriber:
        publisher.await_receivers()
        kept = []
        for seq in range(30):
            publisher.publish(seq)
            kept.append(subscriber.receive(WAIT_S))
    publisher.close()
    for seq, frame in enumerate(kept):
        assert same(frame, seq)


@pytest.mark.parametrize("mode", MODES)
def test_only_the_streams_that_were_named_come(publisher: PublisherProcess, mode: Any) -> None:
    with Subscriber(publisher.endpoint, ["cam1"], mode=mode) as subscriber:
        publisher.await_receivers()
        publisher.publish(0, stream="cam10")
        publisher.publish(1, stream="cam1")
        assert subscriber.receive(WAIT_S).stream == "cam1"


@pytest.mark.parametrize("mode", ["newest", "paced", "shared", "auto"])
def test_a_slow_receiver_works_on_the_newest_frame_of_each_stream(mode: Any) -> None:
    names = [f"cam{i}" for i in range(20)]
    # So many may wait in the publisher that it drops none.
    with (
        PublisherProcess(high_water_mark=10, streams=len(names)) as publisher,
        Subscriber(publisher.endpoint, mode=mode) as subscriber,
    ):
        publisher.await_receivers()
        if mode == "auto" and SHARED_MEMORY:
            eventually(subscriber, mode="shared")
        for seq in range(5):
            for name in names:
                publisher.publish(seq, stream=name)
        last: dict[str, int] = {}
        while set(last.values()) != {4} or len(last) < len(names):
            frame = subscriber.receive(WAIT_S)
            assert frame.seq > last.get(frame.stream, -1)
            last[frame.stream] = frame.seq


@pytest.mark.parametrize("mode", ["paced", "shared"])
def test_a_receiver_that_asks_gets_the_newest_frame_and_none_that_it_missed(
    publisher: PublisherProcess, mode: Any
) -> None:
    with Subscriber(publisher.endpoint, mode=mode) as subscriber:
        publisher.await_receivers()
        for last in (9, 19, 29):
            publisher.publish(last - 9, last)
            assert same(subscriber.receive(WAIT_S), last)
        with pytest.raises(TimeoutError):
            subscriber.receive(0.05)


@pytest.mark.parametrize("mode", ["paced", "shared"])
def test_after_a_timeout_the_next_frame_is_the_newest_one(publisher: PublisherProcess, mode: Any) -> None:
    with Subscriber(publisher.endpoint, mode=mode) as subscriber:
        publisher.await_receivers()
        with pytest.raises(TimeoutError, match=r"no frame came within 0\.01 s"):
            subscriber.receive(0.01)
        publisher.publish(0)  # on its way to a receiver that does not wait any more
        publisher.publish(1, 8)
        received = subscriber.receive(WAIT_S)
        assert same(received, 8)


@pytest.mark.parametrize("mode", ["paced", "shared", "auto"])
def test_a_slow_receiver_delays_no_other(publisher: PublisherProcess, mode: Any) -> None:
    with Subscriber(publisher.endpoint, mode=mode) as slow, Subscriber(publisher.endpoint, mode=mode) as fast:
        publisher.await_receivers(2)
        publisher.publish(0)
        held = slow.receive(WAIT_S)
        for seq in range(1, 40):
            publisher.publish(seq)
            if seq == 1:
                assert fast.receive(WAIT_S).seq in (0, 1)
            else:
                assert same(fast.receive(WAIT_S), seq)
        assert same(held, 0)


def test_auto_reads_shared_memory_where_it_can(publisher: PublisherProcess) -> None:
    if not SHARED_MEMORY:
        pytest.skip("there is no shared memory here")
    with Subscriber(publisher.endpoint) as subscriber:
        eventually(subscriber, mode="shared")
        publisher.publish(3)
        assert same(subscriber.receive(WAIT_S), 3)


@pytest.mark.parametrize("options", [{"shared_memory": False}, {"encoding": "jpeg"}])
@pytest.mark.parametrize(("mode", "becomes"), [("auto", "newest"), ("shared", "paced")])
def test_without_shared_memory_frames_come_all_the_same(options: dict[str, Any], mode: Any, becomes: str) -> None:
    if "encoding" in options:
        pytest.importorskip("cv2")
    with PublisherProcess(**options) as publisher, Subscriber(publisher.endpoint, mode=mode) as subscriber:
        eventually(subscriber, state="live")
        publisher.await_receivers()
        publisher.publish(7)
        assert subscriber.receive(WAIT_S).seq == 7
        assert subscriber.mode == becomes


def test_frames_in_shared_memory_are_given_back_when_they_are_garbage(publisher: PublisherProcess) -> None:
    if not SHARED_MEMORY:
        pytest.skip("there is no shared memory here")
    with Subscriber(publisher.endpoint, mode="shared") as subscriber:
        eventually(subscriber, mode="shared")
        publisher.await_receivers()
        addresses = set()
        for seq in range(50):
            publisher.publish(seq)
            frame = subscriber.receive(WAIT_S)
            assert subscriber.mode == "shared"
            addresses.add(frame.pixels.__array_interface__["data"][0])
            del frame
            gc.collect()
    assert len(addresses) < 8


def test_frames_go_on_as_bytes_when_shared_memory_fails(publisher: PublisherProcess) -> None:
    if not SHARED_MEMORY:
        pytest.skip("there is no shared memory here")
    with Subscriber(publisher.endpoint) as subscriber:
        eventually(subscriber, mode="shared")
        publisher.await_receivers()
        publisher.publish(0)
        for path in Path("/dev/shm").glob(f"deblurd-{publisher.run_id}-[0-9]*"):
            path.unlink()
        with pytest.raises(TimeoutError):
            subscriber.receive(0.1)
        publisher.publish(1)
        assert same(subscriber.receive(WAIT_S), 1)
        assert subscriber.mode == "paced"
        publisher.kill()
        eventually(subscriber, state="lost")
        publisher.start()
        eventually(subscriber, state="live", mode="shared")


def test_a_frame_that_was_taken_too_late_is_lost_and_later_ones_are_shared_again(
    publisher: PublisherProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not SHARED_MEMORY:
        pytest.skip("there is no shared memory here")
    monkeypatch.setattr(sys.modules[RefusedError.__module__], "UNREADABLE_S", 0.2)
    with Subscriber(publisher.endpoint, mode="shared") as subscriber:
        eventually(subscriber, mode="shared")
        publisher.await_receivers()
        publisher.publish(0)
        for path in Path("/dev/shm").glob(f"deblurd-{publisher.run_id}-[0-9]*"):
            path.unlink()
        with pytest.raises(TimeoutError):
            subscriber.receive(0.1)
        assert subscriber.mode == "paced"
        eventually(subscriber, mode="shared")
        publisher.publish(1, 40)  # the first is not there any more either
        assert subscriber.receive(WAIT_S).seq > 0


def test_pixels_outlive_their_frame_and_their_subscriber(publisher: PublisherProcess) -> None:
    with Subscriber(publisher.endpoint, mode="shared") as subscriber:
        publisher.await_receivers()
        publisher.publish(0)
        corner = subscriber.receive(WAIT_S).pixels[:8, :8]
        gc.collect()
        publisher.publish(1, 30)
    publisher.close()
    np.testing.assert_array_equal(corner, pixels(0)[:8, :8])


@pytest.mark.parametrize("mode", MODES)
def test_the_latest_frame_is_there_without_waiting_and_is_not_taken_away(
    publisher: PublisherProcess, mode: Any
) -> None:
    with Subscriber(publisher.endpoint, mode=mode) as subscriber:
        publisher.await_receivers()
        eventually(subscriber, state="live")
        assert subscriber.latest() is None
        publisher.publish(0)
        publisher.publish(1, stream="door")
        while (frame := subscriber.latest()) is None or frame.stream != "door":
            pass
        assert same(frame, 1)
        assert subscriber.latest() is frame
        first = subscriber.latest("cam")
        assert first is not None
        assert same(first, 0)
        assert subscriber.latest("nowhere") is None
        received = [subscriber.receive(WAIT_S).stream for _ in range(2)]
        assert sorted(received) == ["cam", "door"]
        assert subscriber.latest() is frame


@pytest.mark.parametrize("mode", MODES)
def test_the_daemon_may_start_later(mode: Any) -> None:
    with PublisherProcess() as first:
        first.close()
        with Subscriber(first.endpoint, mode=mode) as subscriber:
            assert subscriber.state == "connecting"
            assert subscriber.run_id is None
            first.start()
            first.await_receivers()
            first.publish(0)
            assert same(subscriber.receive(WAIT_S), 0)
            eventually(subscriber, state="live", run_id=first.run_id)


@pytest.mark.parametrize("mode", MODES)
def test_a_daemon_that_died_is_noticed_and_its_successor_is_found(publisher: PublisherProcess, mode: Any) -> None:
    with Subscriber(publisher.endpoint, mode=mode) as subscriber:
        publisher.await_receivers()
        eventually(subscriber, state="live", run_id=publisher.run_id)
        publisher.publish(5)
        kept = subscriber.receive(WAIT_S)
        publisher.kill()
        with pytest.raises(TimeoutError):
            subscriber.receive(NOTICED_S)
        assert subscriber.state == "lost"
        publisher.start()
        eventually(subscriber, state="live", run_id=publisher.run_id)
        publisher.await_receivers()
        publisher.publish(0)
        assert same(subscriber.receive(WAIT_S), 0)
        assert same(kept, 5)


@pytest.mark.parametrize("mode", ["newest", "shared"])
def test_a_daemon_that_restarts_at_once_is_told_from_the_one_before(publisher: PublisherProcess, mode: Any) -> None:
    with Subscriber(publisher.endpoint, mode=mode) as subscriber:
        eventually(subscriber, run_id=publisher.run_id)
        publisher.kill()
        publisher.start()
        eventually(subscriber, run_id=publisher.run_id)
        publisher.await_receivers()
        publisher.publish(1)
        assert same(subscriber.receive(WAIT_S), 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_lost_daemon_is_an_error_by_choice(publisher: PublisherProcess, mode: Any) -> None:
    with Subscriber(publisher.endpoint, mode=mode, on_lost="raise") as subscriber:
        eventually(subscriber, state="live")
        publisher.freeze()
        begin = time.monotonic()
        with pytest.raises(PublisherLostError, match="has not answered"):
            subscriber.receive(WAIT_S)
        assert time.monotonic() - begin < NOTICED_S
        publisher.thaw()
        eventually(subscriber, state="live")
        publisher.await_receivers()
        publisher.publish(2)
        assert same(subscriber.receive(WAIT_S), 2)


@pytest.mark.parametrize("mode", MODES)
def test_a_subscriber_can_be_closed_while_it_waits(publisher: PublisherProcess, mode: Any) -> None:
    subscriber = Subscriber(publisher.endpoint, mode=mode)
    publisher.await_receivers()
    closer = threading.Timer(0.2, subscriber.close)
    closer.start()
    with pytest.raises(ValueError, match="the subscriber is closed"):
        subscriber.receive(WAIT_S)
    closer.join()
    subscriber.close()
    with pytest.raises(ValueError, match="the subscriber is closed"):
        subscriber.latest()


def test_one_client_too_many_is_told_so() -> None:
    with (
        PublisherProcess(max_clients=1) as publisher,
        Subscriber(publisher.endpoint, mode="paced"),
    ):
        publisher.await_receivers()
        with (
            Subscriber(publisher.endpoint, mode="paced") as second,
            pytest.raises(RefusedError, match=r"too many clients|as many clients as it takes"),
        ):
            second.receive(WAIT_S)


@pytest.mark.parametrize("mode", MODES)
def test_who_has_a_key_on_the_list_receives_and_others_are_told(tmp_path: Path, mode: Any) -> None:
    (tmp_path / "allowed").mkdir()
    for name in ("daemon", "allowed/friend", "stranger"):
        new_keys(tmp_path / name)
    friend, stranger = (
        Keys.load(tmp_path / f"{name}.key_secret", tmp_path / "daemon.key") for name in ("allowed/friend", "stranger")
    )
    (tmp_path / "allowed" / "friend.key_secret").unlink()
    with PublisherProcess(keys=str(tmp_path / "daemon.key_secret"), allow=str(tmp_path / "allowed")) as publisher:
        with Subscriber(publisher.endpoint, mode=mode, keys=friend) as subscriber:
            publisher.await_receivers()
            publisher.publish(6)
            assert same(subscriber.receive(WAIT_S), 6)
        misled = Keys(friend.public, friend.secret, stranger.public)
        for keys, reason in (
            (stranger, "is not among those that it allows"),
            (misled, "its public key is not"),
            (None, "it wants keys, got none"),
        ):
            with (
                Subscriber(publisher.endpoint, mode=mode, keys=keys) as subscriber,
                pytest.raises(RefusedError, match=reason),
            ):
                subscriber.receive(WAIT_S)


@pytest.mark.parametrize("mode", MODES)
def test_a_daemon_that_wants_keys_says_so(mode: Any) -> None:
    context = zmq.Context()
    _, secret = zmq.curve_keypair()
    frames, requests = context.socket(zmq.XPUB), context.socket(zmq.ROUTER)
    for server in (frames, requests):
        server.setsockopt(zmq.CURVE_SERVER, 1)
        server.setsockopt(zmq.CURVE_SECRETKEY, secret)
    endpoint, control = (
        f"tcp://127.0.0.1:{server.bind_to_random_port('tcp://127.0.0.1')}" for server in (frames, requests)
    )
    with (
        Subscriber(endpoint, mode=mode, control=control) as subscriber,
        pytest.raises(RefusedError, match=f"{endpoint}|{control}: it wants keys, got none"),
    ):
        subscriber.receive(WAIT_S)
    context.destroy(linger=0)


@pytest.mark.parametrize("mode", ["newest", "queued"])
def test_what_is_no_frame_is_refused_or_passed_over_and_the_next_one_comes(
    publisher: PublisherProcess, mode: Any
) -> None:
    """What a publisher that speaks another format sends; the frame itself is a real one."""
    context = zmq.Context()
    real, foreign = context.socket(zmq.SUB), context.socket(zmq.XPUB)
    real.subscribe(b"")
    real.connect(publisher.endpoint)
    publisher.await_receivers()
    publisher.publish(8)
    message = real.recv()
    port = foreign.bind_to_random_port("tcp://127.0.0.1")
    with Subscriber(f"tcp://127.0.0.1:{port}", mode=mode) as subscriber:
        assert foreign.recv() == b"\1"
        for header in (b'{"version":1,"kind":"weather"}', b'{"version":2,"kind":"frame"}'):
            foreign.send(b"cam\0" + len(header).to_bytes(4, "little") + header)
            if b"2" in header:
                with pytest.raises(WireError, match="wire format 2, this client 1: update the client"):
                    subscriber.receive(WAIT_S)
        foreign.send(message)
        assert same(subscriber.receive(WAIT_S), 8)
    context.destroy(linger=0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"streams": "cam1"}, "streams must be a list"),
        ({"streams": []}, "streams must be a list"),
        ({"streams": [""]}, "1 to 255 bytes"),
        ({"queue": 0}, "queue must be at least 1"),
        ({"mode": "fastest"}, "mode must be auto, newest, queued, paced, shared, got 'fastest'"),
        ({"on_lost": "cry"}, "on_lost must be wait or raise, got 'cry'"),
        ({"control": "nonsense"}, "endpoint must be a ZeroMQ address"),
        ({"mode": "paced", "streams": [f"{i:0255}" for i in range(20)]}, "name fewer streams, or all"),
    ],
)
def test_impossible_wishes_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Subscriber("tcp://127.0.0.1:5555", **arguments)


def test_a_program_that_forgets_to_close_its_subscriber_ends(publisher: PublisherProcess) -> None:
    import subprocess
    import sys

    program = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        f"from {Subscriber.__module__} import Subscriber\n"
        f"for frame in Subscriber({publisher.endpoint!r}, timeout_s=60):\n"
        "    print(frame.seq, frame.pixels.sum()); break\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        publisher.await_receivers()
        publisher.publish(11)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.split() == ["11", str(pixels(11).sum())]

"""The whole daemon among cameras with faults, from real servers to a real subscriber; with both RTSP clients."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_clips import decoded, make_clip, read_mark
from rtp_payloads import Clip
from rtsp_server import Auth, Faults, RtspServer, Video

from daemon.client import Subscriber
from daemon.colour import to_rgb
from daemon.config import load_config
from daemon.frame import Frame
from daemon.service import run

FAST = 100
CLIENTS = ("ffmpeg", "rtp")
PASSWORD = "s3cret"


class Said(logging.Handler):
    """What the daemon logs, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[float, str]] = []
        self._changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._changed:
            self.lines.append((time.monotonic(), record.getMessage()))
            self._changed.notify_all()

    def wait_for(self, words: str) -> float:
        """When it was first said, by the monotonic clock."""
        with self._changed:
            said = self._changed.wait_for(lambda: [at for at, line in self.lines if words in line], 60)
            assert said, "\n".join(line for _, line in self.lines)
            return said[0]

    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)


@dataclass(frozen=True)
class Seen:
    """A frame that was received. number: of its bar code; whole: all its pixels are those of the clip's frame."""

    seq: int
    epoch: int
    number: int | None
    whole: bool
    width: int
    clock: str
    captured_ns: int


class Viewer:
    """A subscriber that looks at every frame as it comes, and keeps what it saw by stream."""

    def __init__(self, endpoint: str, clips: tuple[Clip, ...], look: Callable[[], object]) -> None:
        self.seen: defaultdict[str, list[Seen]] = defaultdict(list)
        self._truth = {clip.width: truth(clip) for clip in clips}
        self._look = look
        self._changed = threading.Condition()
        self._subscriber = Subscriber(endpoint, mode="queued")
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            try:
                frame = self._subscriber.receive()
            except ValueError:  # closed
                return
            seen = self._seen(frame)
            self._look()
            with self._changed:
                self.seen[frame.stream].append(seen)
                self._changed.notify_all()

    def _seen(self, frame: Frame) -> Seen:
        mark = read_mark(frame.pixels)
        number = mark and mark.number
        right = self._truth[frame.width].get(number) if number is not None else None
        whole = right is not None and np.array_equal(frame.pixels, right)
        return Seen(frame.seq, frame.epoch, number, whole, frame.width, frame.clock, frame.captured_ns)

    def wait_for(self, claim: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(claim, 60), {name: len(seen) for name, seen in self.seen.items()}

    def wait_for_more(self, count: int, *streams: str, which: Callable[[Seen], object] = lambda _: True) -> None:
        """Wait until each of the streams has given `count` more frames of a kind."""
        with self._changed:
            before = {stream: len(self.seen[stream]) for stream in streams}
        self.wait_for(lambda: all(len([*filter(which, self.seen[name][n:])]) >= count for name, n in before.items()))

    def close(self) -> None:
        self._subscriber.close()
        self._thread.join()


@cache
def truth(clip: Clip) -> dict[int, np.ndarray]:
    return {number: to_rgb(frame) for number, frame in decoded(clip).items()}


class Serving:
    """A daemon in a thread of this process."""

    def __init__(self, folder: Path, streams: list[dict[str, Any]]) -> None:
        self.endpoint = f"ipc://{folder}/frames"
        settings = {"engine": {"name": "identity"}, "publish": {"endpoint": self.endpoint}}
        config = load_config(None, settings, streams)
        self.said = Said()
        self.result: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: self.result.append(run(config, self._stop)))
        self._thread.start()

    def stop(self) -> float:
        """How many seconds it took to end."""
        began = time.monotonic()
        self._stop.set()
        self._thread.join()
        return time.monotonic() - began


@contextmanager
def serving(folder: Path, *streams: dict[str, Any]) -> Iterator[Serving]:
    log = logging.getLogger("daemon")
    level = log.level
    log.setLevel(logging.INFO)
    daemon = Serving(folder, list(streams))
    log.addHandler(daemon.said)
    try:
        yield daemon
    finally:
        daemon.stop()
        log.removeHandler(daemon.said)
        log.setLevel(level)
    assert daemon.result == [0], daemon.said.text()


@contextmanager
def watched(
    folder: Path, *streams: dict[str, Any], clips: tuple[Clip, ...], look: Callable[[], object] = lambda: None
) -> Iterator[tuple[Serving, Viewer]]:
    with serving(folder, *streams) as daemon:
        viewer = Viewer(daemon.endpoint, clips, look)
        try:
            yield daemon, viewer
        finally:
            viewer.close()


@contextmanager
def nobody() -> Iterator[str]:
    """An address where connections are refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"rtsp://127.0.0.1:{bound.getsockname()[1]}/cam"


@contextmanager
def mute() -> Iterator[str]:
    """An address where connections are accepted, as a kernel does, and nothing is said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"rtsp://127.0.0.1:{listener.getsockname()[1]}/cam"


# Ten at once


@pytest.mark.parametrize("client", CLIENTS)
def test_ten_cameras_with_faults_of_their_own_disturb_no_other_and_come_back(client: str, tmp_path: Path) -> None:
    clip, other = make_clip(), make_clip(width=480, height=272)
    servers = {
        "healthy": RtspServer(clip),
        "freezes": RtspServer(clip),
        "dies": RtspServer(clip),
        "loses": RtspServer(clip, faults=Faults(loss=0.01)),
        "refuses": RtspServer(clip, auth=Auth("cam", PASSWORD), faults=Faults(status={"DESCRIBE": 401})),
        "jumps": RtspServer(clip),
        "resizes": RtspServer([Video(clip, switch=(40, other))]),
        "flips": RtspServer(clip, faults=Faults(corrupt=0.5, only=frozenset(range(12, 20)))),
    }
    common = {"client": client, "timeout_s": 1.0, "open_timeout_s": 1.0, "retry_min_s": 0.05, "retry_max_s": 0.2}
    with ExitStack() as stack:
        addresses = {name: stack.enter_context(server).url() for name, server in servers.items()}
        addresses |= {"nobody": stack.enter_context(nobody()), "mute": stack.enter_context(mute())}
        streams = [{"name": name, "source": address, **common} for name, address in addresses.items()]
        streams[list(servers).index("loses")] |= {"transport": "udp", "client": "auto"}
        daemon, viewer = stack.enter_context(watched(tmp_path, *streams, clips=(clip, other)))
        faults = {name: server.faults for name, server in servers.items()}

        viewer.wait_for_more(10, *(servers.keys() - {"refuses"}))
        faults["freezes"].frozen = True
        faults["jumps"].timestamp_jump, faults["jumps"].clock_offset_s = 90_000 * 3600, -3600.0
        servers["dies"].die()
        for line in ("freezes: frozen", "dies: rtsp", "refuses: rtsp", "nobody: rtsp", "mute: rtsp"):
            daemon.said.wait_for(line)
        viewer.wait_for_more(10, "healthy", "loses", "jumps")

        faults["freezes"].frozen = False
        faults["jumps"].timestamp_jump = 0
        faults["refuses"].heal()
        servers["dies"].start()
        viewer.wait_for_more(10, "freezes", "dies", which=lambda seen: seen.epoch == 1)
        viewer.wait_for_more(10, "healthy", "loses", "jumps", "refuses")
        viewer.wait_for(lambda: any(seen.width == other.width for seen in viewer.seen["resizes"]))
        viewer.wait_for_more(10, "flips", which=lambda seen: seen.seq >= 25)

        seen = dict(viewer.seen)
        hurt = {name: sum(sent.damaged for sent in server.sent) for name, server in servers.items()}

    assert seen.keys() == servers.keys()
    for name, frames in seen.items():
        assert all(sooner.seq < later.seq for sooner, later in pairwise(frames)), name
        assert [frame.epoch for frame in frames] == sorted(frame.epoch for frame in frames), name
        assert {frame.epoch for frame in frames} == ({0, 1} if name in ("freezes", "dies") else {0}), name
        # No decoder sees every flipped bit; what it does not see is gone with the next key frame, the 25th.
        assert all(frame.whole or (name == "flips" and frame.seq < 25) for frame in frames), name
    assert {name for name, count in hurt.items() if count} == {"loses", "flips"}
    assert {frame.width for frame in seen["resizes"]} == {clip.width, other.width}
    assert PASSWORD not in daemon.said.text()


IMPATIENT = """
import sys
from live_clips import make_clip
from rtsp_server import Faults, RtspServer
with RtspServer(make_clip(rate=200), faults=Faults(hang_up_at=12)) as server:
    print(server.url(), flush=True)
    sys.stdin.read()
"""
"""A server that ends every session after the first frames; in a process of its own, so that ours is the client's."""


RECONNECTING = """
import ctypes, gc, json, sys, threading
from pathlib import Path
from daemon.config import load_config
from daemon.sources import open_source
from daemon.status import StreamStatus

def resources():
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # else what the allocator keeps for later counts, too: up to 50 MB, as threads come and go
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), pages * 4096

stream = {"source": sys.argv[1], "client": sys.argv[2], "retry_min_s": 0.01, "retry_max_s": 0.01}
early, late = {}, {}
with open_source(load_config(None, {}, [stream]).streams[0], StreamStatus("cam")) as source:
    for frame in source:
        if 100 <= frame.epoch < 105:  # what libraries keep for good, they have by then
            early[frame.epoch] = resources()
        elif 300 <= frame.epoch < 305:
            late[frame.epoch] = resources()
        elif frame.epoch == 305:
            break
# The least of each: a session may be ending still.
print(json.dumps([[min(column) for column in zip(*taken.values())] for taken in (early, late)]))
"""
"""Prints open descriptors, threads and bytes of memory in use after 100 and 300 reconnects. It is a process of its own,
because the memory of that of the tests comes and goes with others."""


@pytest.mark.long
@pytest.mark.parametrize("client", CLIENTS)
def test_two_hundred_reconnects_leave_nothing_behind(client: str) -> None:
    command, tests = [sys.executable, "-c", IMPATIENT], Path(__file__).parents[1]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(tests)}
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        said = subprocess.check_output([sys.executable, "-c", RECONNECTING, url, client], text=True)
        server.communicate()
    (descriptors, threads, memory), (more_descriptors, more_threads, more_memory) = json.loads(said)
    assert more_descriptors <= descriptors
    assert more_threads <= threads
    assert more_memory - memory < 4_000_000, said


# Freezes, and the end


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("faults", [Faults(freeze_at=30), Faults(stuck_at=30)], ids=["between frames", "mid-packet"])
def test_a_freeze_is_noticed_within_twice_the_set_time_and_tried_again(
    client: str, faults: Faults, tmp_path: Path
) -> None:
    with (
        RtspServer(make_clip(rate=FAST), faults=faults) as server,
        serving(tmp_path, {"name": "cam", "source": server.url(), "client": client, "timeout_s": 1.0}) as daemon,
    ):
        frozen_s = daemon.said.wait_for("cam: frozen")
        retrying_s = daemon.said.wait_for("next attempt in")
        last_s = max(sent.left_s for sent in server.sent if sent.client == 0)
        daemon.said.wait_for("cam: live after 1 failed attempt")
    assert 0.9 < frozen_s - last_s < 2
    assert frozen_s <= retrying_s < last_s + 2


STATES: dict[str, tuple[Faults, Callable[[RtspServer], None]]] = {
    "connecting": (Faults(silent=True), lambda server: server.wait_for_connected(1)),
    "live": (Faults(), lambda server: server.wait_for_frames(30)),
    "frozen": (Faults(freeze_at=30), lambda server: server.wait_for_frames(30)),
    "mid-packet": (Faults(stuck_at=30), lambda server: server.wait_for(lambda: server.stuck)),
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("state", STATES)
def test_the_daemon_ends_within_a_second_whatever_its_camera_does(state: str, client: str, tmp_path: Path) -> None:
    faults, begins = STATES[state]
    patient = {"timeout_s": 60.0, "open_timeout_s": 60.0}
    with (
        RtspServer(make_clip(rate=FAST), faults=faults) as server,
        serving(tmp_path, {"name": "cam", "source": server.url(), "client": client, **patient}) as daemon,
    ):
        begins(server)
        assert daemon.stop() < 1


@pytest.mark.parametrize("client", CLIENTS)
def test_the_daemon_ends_within_a_second_between_two_attempts(client: str, tmp_path: Path) -> None:
    seldom = {"retry_min_s": 60.0, "retry_max_s": 60.0}
    with (
        nobody() as address,
        serving(tmp_path, {"name": "cam", "source": address, "client": client, **seldom}) as daemon,
    ):
        daemon.said.wait_for("next attempt in 60.0 s")
        assert daemon.stop() < 1


# Time


@pytest.mark.parametrize("client", CLIENTS)
def test_clocks_that_wrap_around_jump_and_are_set_neither_stall_nor_reorder(client: str, tmp_path: Path) -> None:
    clip = make_clip(rate=FAST)
    video = Video(clip, first_timestamp=2**32 - 90_000 // 2, first_sequence=65_500)
    with (
        RtspServer([video]) as server,
        watched(tmp_path, {"name": "cam", "source": server.url(), "client": client}, clips=(clip,)) as (_, viewer),
    ):
        viewer.wait_for_more(80, "cam")
        server.faults.clock_offset_s = -7200.0
        viewer.wait_for_more(30, "cam", which=lambda seen: set_back(seen, 7200))
        server.faults.timestamp_jump = 90_000 * 3600
        viewer.wait_for_more(30, "cam")
        server.faults.timestamp_jump = 0
        viewer.wait_for_more(30, "cam")
        server.faults.clock_offset_s = 0.0
        viewer.wait_for_more(30, "cam", which=lambda seen: set_back(seen, 0))
    frames = viewer.seen["cam"]
    assert {frame.epoch for frame in frames} == {0}
    assert all(sooner.seq < later.seq for sooner, later in pairwise(frames))
    assert [frame.number for frame in frames] == [frame.seq % 50 for frame in frames]
    assert all(frame.whole for frame in frames)


def set_back(seen: Seen, seconds: float) -> bool:
    """The frame was taken so long ago by the sender's clock."""
    return seen.clock == "sender" and abs(time.time() - seconds - seen.captured_ns / 1e9) < 60

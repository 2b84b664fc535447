"""Claims about a server that is not of our making, GStreamer's, watched by both clients."""

from __future__ import annotations

import subprocess
import time
from itertools import islice, pairwise
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from live_clips import decoded, make_clip, read_mark
from rtsp_server import self_signed

from daemon.address import Address
from daemon.colour import to_rgb
from daemon.errors import SourceError
from daemon.network_source import NetworkSource
from daemon.persistent import Persistent, Retry
from daemon.rtsp.source import RtspSource
from daemon.source import LiveOptions
from daemon.status import StreamStatus

PYTHON = Path("/usr/bin/python3")  # Debian's GStreamer is there for Debian's own
PROGRAM = Path(__file__).parents[1] / "gst_server.py"
MISSING = 3
RATE = 25
PASSWORD = "s3cret/p@ss"
CLIENTS = {"rtp tcp": (RtspSource, "tcp"), "rtp udp": (RtspSource, "udp"), "ffmpeg tcp": (NetworkSource, "tcp")}


class GstServer:
    """A server in a process of its own; `start` after `kill` brings it back at the same port."""

    def __init__(self, folder: Path, codec: str = "h264", *options: str) -> None:
        self._folder = folder
        self._options = ["--codec", codec, "--rate", str(RATE), *options]
        self.port = "0"
        units = folder / "units"
        units.mkdir()
        for number, unit in enumerate(make_clip(codec, rate=RATE).units):
            (units / f"{number:05d}").write_bytes(unit.data)
        self.start()

    def start(self) -> None:
        if not PYTHON.exists():
            pytest.skip(f"GStreamer's RTSP server runs with {PYTHON}, which is not there")
        errors = self._folder / "errors"
        command = [PYTHON, PROGRAM, self._folder / "units", "--port", self.port, *self._options]
        with errors.open("w") as file:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        assert self._process.stdout is not None
        self.port = self._process.stdout.readline().strip()
        if not self.port:
            self._process.communicate()
            give_up = pytest.skip if self._process.returncode == MISSING else pytest.fail
            give_up(f"GStreamer's RTSP server does not start: {errors.read_text().strip()}")

    def url(self, login: str = "", path: str = "cam") -> str:
        return f"rtsp://{login}127.0.0.1:{self.port}/{path}"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def source_of(client: str, url: str, on_state=lambda _: None) -> RtspSource | NetworkSource:
    kind, transport = CLIENTS[client]
    return kind(Address.parse(url), LiveOptions(transport=transport, tls_verify=False), stream="cam", on_state=on_state)


def take(count: int, client: str, url: str) -> list[int]:
    """The numbers of the first frames."""
    with source_of(client, url) as source:
        return [read_mark(frame.pixels).number for frame in islice(source, count)]


def failure(client: str, url: str) -> str:
    with source_of(client, url) as source, pytest.raises(SourceError) as caught:
        next(iter(source))
    text = str(caught.value)
    assert text.startswith(f"{Address.parse(url)}: ")
    assert text.isprintable()
    assert "s3cret" not in text
    return text


@pytest.fixture(scope="module", params=["h264", "h265", "mjpeg"])
def camera(request, tmp_path_factory):
    with GstServer(tmp_path_factory.mktemp("camera"), request.param) as server:
        yield request.param, server


@pytest.mark.parametrize("client", CLIENTS)
def test_every_frame_is_whole_and_its_time_the_senders_once_it_reports(camera, client):
    codec, server = camera
    truth = {number: to_rgb(frame) for number, frame in decoded(make_clip(codec, rate=RATE)).items()}
    frames, ages_s = [], []
    with source_of(client, server.url()) as source:
        for frame in islice(source, 10 * RATE):
            frames.append(frame)
            ages_s.append((time.time_ns() - frame.captured_ns) / 1e9)
            if [each.clock for each in frames[-10:]] == ["sender"] * 10:
                break
        assert not any(source.counters.values())

    numbers = [read_mark(frame.pixels).number for frame in frames]
    assert numbers == [place % len(truth) for place in range(len(frames))]
    assert all(np.array_equal(frame.pixels, truth[number]) for frame, number in zip(frames, numbers, strict=True))
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert {round(later.time_s - sooner.time_s, 3) for sooner, later in pairwise(frames)} == {1 / RATE}

    assert [frame.clock for frame in frames[-10:]] == ["sender"] * 10
    assert all(-1 < age_s < 2 for age_s in ages_s)  # both clocks are this host's


def test_sound_beside_the_video_changes_nothing(tmp_path):
    with GstServer(tmp_path, "h264", "--sound") as server:
        for client in CLIENTS:
            assert take(30, client, server.url()) == list(range(30))


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_only_who_knows_the_password_may_watch(scheme, tmp_path):
    login = ("--user", "op@site", "--password", PASSWORD, "--scheme", scheme)
    with GstServer(tmp_path, "h264", *login) as server:
        for client in CLIENTS:
            assert take(3, client, server.url("op%40site:s3cret%2Fp%40ss@")) == [0, 1, 2]
            assert "refuses this user and password" in failure(client, server.url("op%40site:s3cret@"))
            assert "asks for a user and password" in failure(client, server.url())


def test_the_session_may_be_encrypted(tmp_path):
    self_signed(tmp_path)
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "certificate.pem").read_text() + (tmp_path / "key.pem").read_text())
    with GstServer(tmp_path, "h264", "--user", "cam", "--password", PASSWORD, "--certificate", str(both)) as server:
        url = server.url("cam:s3cret%2Fp%40ss@").replace("rtsp:", "rtsps:")
        for client in ("rtp tcp", "ffmpeg tcp"):
            assert take(30, client, url) == list(range(30))


def test_what_the_server_does_not_serve_is_said(tmp_path):
    with GstServer(tmp_path, "h264", "--only", "udp") as server:
        assert take(3, "rtp udp", server.url()) == [0, 1, 2]
        for client in ("ffmpeg tcp", "rtp tcp"):
            assert "set transport 'udp'" in failure(client, server.url())
        for client in CLIENTS:
            assert "404" in failure(client, server.url(path="other"))


def test_a_server_that_sends_over_tcp_alone_says_so(tmp_path):
    with GstServer(tmp_path, "h264", "--only", "tcp") as server:
        assert "set transport 'tcp'" in failure("rtp udp", server.url())


@pytest.mark.parametrize("client", CLIENTS)
def test_a_server_that_is_killed_and_started_again_is_picked_up(client, tmp_path):
    attempts = []

    def attempt(on_state):
        attempts.append(client)
        if len(attempts) == 3:  # the second found nobody there
            server.start()
        return source_of(client, server.url(), on_state)

    with GstServer(tmp_path) as server:
        status = StreamStatus("cam")
        with Persistent(attempt, retry=Retry(min_s=0.01, max_s=0.02), status=status) as source:
            frames = []
            for frame in source:
                frames.append(frame)
                if len(frames) == 5:
                    server.kill()
                if [each.epoch for each in frames[-5:]] == [1] * 5:
                    break
            assert status.snapshot().reconnects == 1
    again = [frame for frame in frames if frame.epoch == 1]
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert [read_mark(frame.pixels).number for frame in again] == list(range(5))
    assert len(attempts) == 3

"""Every kind of address gives its source, and what is set for a stream reaches it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import clips
import cv2
import numpy as np
import pytest
from live_clips import make_clip, read_mark
from rtsp_server import Auth, Faults, RtspServer, self_signed
from web_server import Answer, WebServer

from daemon.config import load_config
from daemon.errors import ConfigError, SourceError
from daemon.file_source import FileSource
from daemon.folder_source import FolderSource
from daemon.frame import Frame
from daemon.loop import Looped
from daemon.pace import Paced
from daemon.pattern_source import PatternSource
from daemon.persistent import Persistent
from daemon.source import Source
from daemon.sources import open_source
from daemon.status import StreamStatus

FAST = 100
TESTS = Path(__file__).parents[1]
CLIENTS = ("ffmpeg", "rtp")


def opened(source: str | Path, **settings: Any) -> Source:
    address = str(source)
    if address.startswith(("rtsp", "http", "v4l2", "/dev")):
        settings = {"retry_attempts": 1, **settings}  # else what fails is tried for ever
    stream = load_config(None, {}, [{"source": address, "name": "cam", **settings}]).streams[0]
    return open_source(stream, StreamStatus("cam"))


def take(count: int, source: str | Path, **settings: Any) -> list[Frame]:
    with opened(source, **settings) as frames:
        return list(islice(frames, count))


def failure(source: str | Path, **settings: Any) -> str:
    """The line that a stream ends with, whatever it gives before; a live one after its only attempt."""
    with pytest.raises(SourceError) as caught, opened(source, **settings) as frames:
        for _ in frames:
            pass
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return clips.write_video(tmp_path / "video.mp4", count=5)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        assert cv2.imwrite(str(folder / f"{number}.png"), np.full((48, 64, 3), number, np.uint8))
    return folder


# Kinds


def test_each_kind_of_address_has_its_source(video: Path, pictures: Path) -> None:
    assert type(opened(video)) is FileSource
    assert type(opened(video.as_uri())) is FileSource
    assert type(opened(pictures)) is FolderSource
    assert type(opened("test:")) is PatternSource
    for address in ("rtsp://h/1", "rtsps://h/1", "http://h/1", "https://h/1", "v4l2:0", "/dev/video0"):
        assert type(opened(address)) is Persistent


def test_only_what_comes_by_itself_is_live(video: Path, pictures: Path) -> None:
    for source, live in ((video, False), (pictures, False), ("test:", True), ("rtsp://h/1", True), ("v4l2:0", True)):
        with opened(source) as frames:
            assert frames.live == live


def test_files_and_folders_may_be_looped_and_paced(video: Path, pictures: Path) -> None:
    for source, count in ((video, 5), (pictures, 3)):
        assert type(opened(source, loop=True)) is Looped
        assert type(opened(source, realtime=True)) is Paced
        assert len(take(99, source)) == count
        assert len(take(3 * count, source, loop=True)) == 3 * count
        frames = take(count + 1, source, loop=True, realtime=True)
        assert frames[-1].arrived_ns - frames[0].arrived_ns >= (count - 1) / 25 * 1e9


def test_pictures_of_a_folder_come_at_the_rate_that_is_set(pictures: Path) -> None:
    assert [frame.time_s for frame in take(3, pictures)] == pytest.approx([0, 1 / 25, 2 / 25])
    assert [frame.time_s for frame in take(3, pictures, rate=10.0)] == pytest.approx([0, 0.1, 0.2])


def test_a_pattern_has_the_size_and_rate_of_its_address_and_may_wait_for_its_reader() -> None:
    frame = take(1, "test:320x240@50")[0]
    assert (frame.width, frame.height, frame.time_base) == (320, 240, 1 / clips.Fraction(50))
    assert not opened("test:", overload="block").live


@pytest.mark.parametrize(
    ("settings", "agent", "transport"),
    [
        ({}, "Lavf", "TCP"),
        ({"client": "ffmpeg"}, "Lavf", "TCP"),
        ({"client": "rtp"}, "deblurd", "TCP"),
        ({"transport": "udp"}, "deblurd", "client_port"),
    ],
    ids=str,
)
def test_the_client_and_the_transport_are_those_that_are_set(
    settings: dict[str, str], agent: str, transport: str
) -> None:
    with RtspServer(make_clip(rate=FAST)) as server:
        frames = take(5, server.url(), **settings)
        setup = next(request for request in server.requests if request.method == "SETUP")
    assert [read_mark(frame.pixels).number for frame in frames] == list(range(5))
    assert {frame.stream for frame in frames} == {"cam"}
    assert agent in setup.headers["user-agent"]
    assert transport in setup.headers["transport"]


@pytest.mark.parametrize("client", CLIENTS)
def test_rtsps_is_read_by_both_clients(client: str, tmp_path: Path) -> None:
    with RtspServer(make_clip(rate=FAST), tls=self_signed(tmp_path)) as server:
        assert len(take(5, server.url(), client=client, tls_verify=False)) == 5
        assert "certificate is not trusted" in failure(server.url(), client=client)


def test_http_and_https_are_read(video: Path, tmp_path: Path) -> None:
    answers = {"/a.mp4": Answer(video.read_bytes(), "video/mp4")}
    with WebServer(answers) as server, WebServer(answers, tls=self_signed(tmp_path)) as secure:
        assert len(take(9, server.url("/a.mp4"))) == 5
        assert len(take(9, secure.url("/a.mp4"), tls_verify=False)) == 5


# Settings


@pytest.mark.parametrize("client", CLIENTS)
def test_the_times_that_are_set_are_those_that_are_waited(client: str) -> None:
    with RtspServer(make_clip(rate=FAST), faults=Faults(freeze_at=20)) as server:
        assert "for 0.3 s (given up after 1 attempts)" in failure(server.url(), timeout_s=0.3, client=client)
    with RtspServer(make_clip(), faults=Faults(silent=True)) as server:
        assert "within 0.3 s" in failure(server.url(), open_timeout_s=0.3, client=client)


@pytest.mark.parametrize("client", CLIENTS)
def test_it_is_tried_as_often_as_set(client: str) -> None:
    with RtspServer(make_clip(), faults=Faults(status={"DESCRIBE": 503})) as server:
        wanted = {"client": client, "retry_attempts": 3, "retry_min_s": 0.01, "retry_max_s": 0.02}
        assert "(given up after 3 attempts)" in failure(server.url(), **wanted)
        assert [request.method for request in server.requests].count("DESCRIBE") == 3


@pytest.mark.parametrize("client", CLIENTS)
def test_a_stream_that_is_larger_than_set_is_refused(client: str) -> None:
    with RtspServer(make_clip()) as server:
        assert "at most 1000 pixels, got 320x240" in failure(server.url(), client=client, max_pixels=1000)


def test_a_file_that_is_larger_than_set_is_refused(video: Path) -> None:
    assert "at most 1000 pixels, got 64x48" in failure(video, max_pixels=1000)


@pytest.mark.parametrize("client", CLIENTS)
def test_interlaced_frames_become_progressive_where_it_is_set(client: str) -> None:
    with RtspServer(make_clip(rate=FAST, interlaced=True)) as server:
        for deinterlace in (False, True):
            frames = take(5, server.url(), client=client, deinterlace=deinterlace)
            assert {frame.origin.interlaced_frame for frame in frames} == {not deinterlace}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_password_file_holds_the_password(client: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("p@ss/word\n", "utf-8")
    with RtspServer(make_clip(rate=FAST), auth=Auth("cam", "p@ss/word")) as server:
        address = f"rtsp://cam@127.0.0.1:{server.port}/cam"
        assert len(take(3, address, client=client, password_file=str(secret))) == 3


READ_CAMERA = """
import json, sys
from itertools import islice
from daemon.config import load_config
from daemon.errors import SourceError
from daemon.sources import open_source
from daemon.status import StreamStatus
stream = load_config(None, {}, [json.loads(sys.argv[1])]).streams[0]
try:
    with open_source(stream, StreamStatus("cam")) as source:
        print([(frame.stream, frame.width, frame.height) for frame in islice(source, 3)])
except SourceError as error:
    print(error)
"""


def test_a_camera_of_this_machine_is_asked_for_the_size_and_format_that_are_set(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler, to stand in for a camera")
    driver = tmp_path / "fake_camera.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", driver, TESTS / "fake_camera.c", "-ldl"], check=True)
    environment = os.environ | {"FAKE_CAMERA": "/dev/video77", "LD_PRELOAD": str(driver)}

    def read(**settings: Any) -> str:
        stream = {"source": "v4l2:77", "name": "cam", "retry_attempts": 1, **settings}
        command = [sys.executable, "-c", READ_CAMERA, json.dumps(stream)]
        return subprocess.run(
            command, capture_output=True, check=True, text=True, timeout=60, cwd=TESTS.parent, env=environment
        ).stdout.strip()

    assert read() == str([("cam", 640, 480)] * 3)
    assert read(size="320x240", rate=50.0, pixel_format="YUYV") == str([("cam", 320, 240)] * 3)
    assert "has no pixel format MJPG" in read(pixel_format="MJPG")
    assert "at most 1000 pixels" in read(max_pixels=1000)


# What is refused


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("none.mp4", "none.mp4: no such file"),
        ("test:8x8", "test pattern: the size must be from 48x32 to 8192x8192, got 8x8"),
    ],
)
def test_what_cannot_become_a_source_is_refused_before_it_is_read(source: str, line: str) -> None:
    with pytest.raises(SourceError) as caught:
        opened(source)
    assert str(caught.value) == line


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="must have at least one picture, got an empty folder"):
        opened(tmp_path)


KINDS = {
    "file": "a.mp4",
    "folder": str(TESTS),
    "test": "test:",
    "v4l2": "v4l2:0",
    "rtsp": "rtsp://h/1",
    "rtsps": "rtsps://h/1",
    "http": "http://h/1",
    "https": "https://h/1",
}
FOR = {
    ("realtime", True): "file folder",
    ("loop", True): "file folder",
    ("transport", "udp"): "rtsp",
    ("client", "rtp"): "rtsp rtsps",
    ("tls_verify", False): "rtsps http https",
    ("timeout_s", 1.0): "v4l2 rtsp rtsps http https",
    ("open_timeout_s", 1.0): "v4l2 rtsp rtsps http https",
    ("retry_min_s", 1.0): "v4l2 rtsp rtsps http https",
    ("retry_max_s", 20.0): "v4l2 rtsp rtsps http https",
    ("retry_attempts", 3): "v4l2 rtsp rtsps http https",
    ("deinterlace", True): "rtsp rtsps http https",
    ("size", "320x240"): "v4l2",
    ("rate", 5.0): "v4l2 folder",
    ("pixel_format", "MJPG"): "v4l2",
    ("max_pixels", 1000): " ".join(KINDS),
    ("overload", "block"): " ".join(KINDS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_of_another_kind_is_refused_in_one_line(kind: str) -> None:
    for (setting, value), kinds in FOR.items():
        stream = {"source": KINDS[kind], setting: value}
        if kind in kinds.split():
            assert getattr(load_config(None, {}, [stream]).streams[0], setting) == value
            continue
        with pytest.raises(ConfigError) as caught:
            load_config(None, {}, [stream])
        assert str(caught.value).startswith(f"'streams.0.{setting}' ")
        assert str(caught.value).isprintable()

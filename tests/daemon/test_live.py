"""The daemon on real cameras: an RTSP server that dies, comes back and refuses; a real process; a real subscriber."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from live_clips import make_clip
from rtsp_server import Auth, RtspServer

from daemon.client import Subscriber
from daemon.frame import Frame

REPOSITORY = Path(__file__).parents[2]
SECRET = "s3cr:et"


class Said:
    """What a process says on standard error, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(process,))
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()

    def wait_for(self, words: str) -> None:
        with self._changed:
            came = self._changed.wait_for(lambda: any(words in line for line in self.lines), 60)
            assert came, "\n".join(self.lines)

    def all(self) -> str:
        self._reader.join(60)
        return "\n".join(self.lines)


@contextmanager
def daemon(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], Said, str]]:
    """A running daemon, what it says, and where it publishes."""
    endpoint = f"ipc://{folder}/frames"
    command = [sys.executable, "-m", "daemon", "run", *words, "--engine", "identity", "--publish", endpoint]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        said = Said(process)
        try:
            yield process, said, endpoint
        finally:
            process.kill()
            said.all()


def received(subscriber: Subscriber, claim: Callable[[Frame], object]) -> Frame:
    """The first frame of which `claim` holds."""
    while True:
        frame = subscriber.receive(60)
        if claim(frame):
            return frame


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_camera_that_dies_and_comes_back_stays_one_stream(tmp_path: Path) -> None:
    with (
        RtspServer(make_clip(), auth=Auth("cam", SECRET)) as server,
        daemon(tmp_path, f"porch={server.url()}") as (process, said, endpoint),
        Subscriber(endpoint, ["porch"], mode="queued") as subscriber,
    ):
        before = subscriber.receive(60)
        assert (before.stream, before.epoch) == ("porch", 0)
        server.die()
        said.wait_for("the server closed the connection; next attempt")
        server.start()
        after = received(subscriber, lambda frame: frame.epoch == 1)
        assert after.seq > before.seq
        said.wait_for("porch: live after")
        end(process)
        assert "s3cr" not in said.all()


def test_a_camera_over_udp_is_read_by_the_client_that_sees_what_is_lost(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    with RtspServer(make_clip()) as server:
        config.write_text(f'[[streams]]\nname = "porch"\nsource = "{server.url()}"\ntransport = "udp"\n', "utf-8")
        with (
            daemon(tmp_path, "-c", str(config)) as (process, said, endpoint),
            Subscriber(endpoint, ["porch"], mode="queued") as subscriber,
        ):
            assert received(subscriber, lambda frame: frame.seq > 10).epoch == 0
            end(process)
            assert "frames restored" in said.all()


def test_one_dead_camera_holds_up_no_other(tmp_path: Path) -> None:
    with (
        RtspServer(make_clip()) as server,
        daemon(tmp_path, f"alive={server.url()}", "dead=rtsp://127.0.0.1:9/none") as (process, said, endpoint),
        Subscriber(endpoint, ["alive"], mode="queued") as subscriber,
    ):
        said.wait_for("dead: rtsp://127.0.0.1:9/none: connection refused")
        assert received(subscriber, lambda frame: frame.seq > 20).epoch == 0
        end(process)


def test_a_wrong_password_is_said_without_the_password(tmp_path: Path) -> None:
    with (
        RtspServer(make_clip(), auth=Auth("cam", SECRET)) as server,
        daemon(tmp_path, f"porch={server.url().replace('s3cr', 'wr0ng')}") as (process, said, _),
    ):
        said.wait_for("refuses this user and password")
        end(process)
        assert "wr0ng" not in said.all()


def test_a_daemon_ends_while_its_only_camera_says_nothing(tmp_path: Path) -> None:
    with RtspServer(make_clip()) as server:
        server.faults.silent = True
        with daemon(tmp_path, f"porch={server.url()}") as (process, said, _):
            server.wait_for_connected(1)
            end(process)
            assert "porch: ended, 0 frames restored" in said.all()


def test_several_kinds_of_source_are_served_together(tmp_path: Path) -> None:
    clip = REPOSITORY / "tests" / "media" / "demo_blurred.mp4"
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
[[streams]]
name = "clip"
source = "{clip}"
loop = true
realtime = true
[[streams]]
name = "pattern"
source = "test:320x240@50"
""",
        encoding="utf-8",
    )
    with (
        daemon(tmp_path, "-c", str(config)) as (process, _, endpoint),
        Subscriber(endpoint, mode="queued") as subscriber,
    ):
        assert received(subscriber, lambda frame: frame.stream == "clip").width == 640
        assert received(subscriber, lambda frame: frame.stream == "pattern").width == 320
        end(process)


def test_a_camera_over_udp_may_be_asked_for_on_the_command_line(tmp_path: Path) -> None:
    with (
        RtspServer(make_clip()) as server,
        daemon(tmp_path, f"porch={server.url()}", "--transport", "udp") as (process, _, endpoint),
        Subscriber(endpoint, ["porch"], mode="queued") as subscriber,
    ):
        assert received(subscriber, lambda frame: frame.seq > 10).epoch == 0
        assert any("client_port" in request.headers.get("transport", "") for request in server.requests)
        end(process)


def test_each_stream_has_a_line_of_its_state_rate_and_ages(tmp_path: Path) -> None:
    clip = REPOSITORY / "tests" / "media" / "demo_blurred.mp4"
    config = tmp_path / "config.toml"
    config.write_text("[log]\nstatistics_s = 0.5\n", encoding="utf-8")
    sources = [f"clip={clip}", "pattern=test:320x240", "dead=rtsp://127.0.0.1:9/none"]
    with daemon(tmp_path, "-c", str(config), *sources) as (process, said, _):
        said.wait_for("dead: retrying, 0.0 fps, 0 restored, 0 dropped; rtsp://127.0.0.1:9/none: connection refused")
        said.wait_for("clip: ended, 0.0 fps, ")
        said.wait_for("pattern: live, 25.")
        end(process)
    with_ages = re.compile(r"pattern: live, \d+\.\d fps, age p50 [\d.]+ ms, p99 [\d.]+ ms, \d+ restored, \d+ dropped")
    assert any(with_ages.search(line) for line in said.lines), said.all()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gopher://camera/1"], "the kind of source must be known, got 'gopher'"),
        (["no-such-file.mp4"], "no-such-file.mp4: no such file"),
        (["rtsp://u:hidden@"], "the address must have a host"),
        (["test:", "--realtime"], "'streams.0.realtime' is for files and folders, got test:"),
    ],
)
def test_what_cannot_become_a_source_is_refused_before_anything_runs(words: list[str], line: str) -> None:
    command = [sys.executable, "-m", "daemon", "run", *words]
    answer = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60, env={**os.environ, "COLUMNS": "300"}
    )
    assert answer.returncode == 1
    assert line in answer.stderr
    assert "hidden" not in answer.stderr
    assert "Traceback" not in answer.stderr

"""`deblurd enhance` between other programs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import clips
import pytest

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "COLUMNS": "300", "PYTHONPATH": str(REPOSITORY)}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "daemon", "enhance", *map(str, arguments), "--engine", "identity", "--lossless"]


def piped(data: bytes, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run it with temporary files in `folder`, of which none may be left."""
    temporary = folder / "temporary"
    temporary.mkdir()
    environment = {**ENVIRONMENT, "TMPDIR": str(temporary)}
    answer = subprocess.run(command(*arguments), input=data, capture_output=True, timeout=120, env=environment)
    assert not list(temporary.iterdir())
    return answer


@pytest.mark.parametrize("suffix", [".mkv", ".nut", ".mp4", ".ts"])
def test_a_video_goes_in_and_a_matroska_video_comes_out(tmp_path, suffix):
    source = clips.write_video(tmp_path / f"a{suffix}", count=20, audio="aac")
    answer = piped(source.read_bytes(), tmp_path, "-", "-o", "-")
    assert answer.returncode == 0, answer.stderr
    (tmp_path / "b.mkv").write_bytes(answer.stdout)
    old, new = clips.frames_of(source), clips.frames_of(tmp_path / "b.mkv")
    assert all((clips.planes_of(x)[0] == clips.planes_of(y)[0]).all() for x, y in zip(old, new, strict=True))
    assert len(clips.packet_digests(tmp_path / "b.mkv", "audio")) == len(clips.packet_digests(source, "audio"))
    assert b"20 frames" in answer.stderr


def test_events_are_on_standard_error_where_the_video_is_on_standard_output(tmp_path):
    source = clips.write_video(tmp_path / "a.mkv", count=5)
    answer = piped(b"", tmp_path, source, "-o", "-", "--json", "--quiet")
    assert answer.stdout[:4] == b"\x1aE\xdf\xa3"  # of every Matroska file
    events = [json.loads(line) for line in answer.stderr.splitlines() if line.startswith(b"{")]
    assert [event["event"] for event in events] == ["started", "finished"]


def test_a_file_can_be_made_of_a_pipe(tmp_path):
    source = clips.write_video(tmp_path / "a.mkv", count=5)
    assert piped(source.read_bytes(), tmp_path, "-", "-o", tmp_path / "b.mp4").returncode == 0
    assert len(clips.frames_of(tmp_path / "b.mp4")) == 5


@pytest.mark.parametrize("data", [b"", b"no video"])
def test_what_is_no_video_is_one_line_and_nothing_on_standard_output(tmp_path, data):
    answer = piped(data, tmp_path, "-", "-o", "-")
    assert (answer.returncode, answer.stdout) == (1, b"")
    assert answer.stderr.count(b"\n") == 1
    assert b"must be a video file" in answer.stderr


@pytest.mark.parametrize(("arguments", "reason"), [(("-", "a.mp4", "-o", "out"), b"the only input")])
def test_only_one_input_is_a_pipe(tmp_path, arguments: Sequence[str], reason):
    answer = piped(b"", tmp_path, *arguments)
    assert answer.returncode == 1
    assert reason in answer.stderr


def test_a_terminal_is_no_video(tmp_path):
    source = clips.write_video(tmp_path / "a.mkv", count=2)
    ours, theirs = pty.openpty()
    try:
        answer = subprocess.run(command(source, "-o", "-"), stdout=theirs, stderr=subprocess.PIPE, env=ENVIRONMENT)
    finally:
        os.close(ours)
        os.close(theirs)
    assert answer.returncode == 1
    assert b"got a terminal" in answer.stderr


def test_it_can_be_stopped_while_it_waits_for_more(tmp_path):
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command("-", "-o", "-"), env=environment, **pipes) as process:
        while not any(tmp_path.iterdir()):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
                pytest.fail("ended before it was stopped")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert not any(tmp_path.iterdir())

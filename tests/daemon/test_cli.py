"""Claims about the command line, made with real processes."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import clips
import cv2
import pytest

from daemon.client import Subscriber
from daemon.config import shipped_config
from engine.model import shipped_models

DEBLURD = [sys.executable, "-m", "daemon"]
REPOSITORY = Path(__file__).parents[2]
MEDIA = REPOSITORY / "tests" / "media"
WAIT_S = 120


def deblurd(*arguments: str | Path, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    environment = {**os.environ, "COLUMNS": "300", "PYTHONPATH": str(REPOSITORY)}
    command = [*DEBLURD, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, cwd=cwd, env=environment)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return clips.write_video(tmp_path / "clip.mp4", count=20)


@pytest.mark.parametrize("command", ["run", "watch", "enhance", "train", "export", "evaluate", "config", "doctor"])
def test_every_command_explains_itself(command: str) -> None:
    answer = deblurd(command, "--help")
    assert answer.returncode == 0
    assert "Usage" in answer.stdout


def test_config_prints_the_commented_defaults() -> None:
    assert deblurd("config").stdout == shipped_config()


def test_doctor_finds_an_engine_and_a_model() -> None:
    answer = deblurd("doctor", "--json")
    assert answer.returncode == 0
    findings = {check["name"]: check for check in json.loads(answer.stdout)}
    assert findings["engine"]["ok"]
    assert set(shipped_models()) <= set(findings["models"]["finding"].split(", "))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run"], "'streams' must name at least one source"),
        (["run", "none.mp4"], "none.mp4: no such file"),
        (["run", "rtp://user:secret@127.0.0.1/x"], "the kind of source must be known, got 'rtp'"),
        (["run", "x" * 300 + ".mp4"], "File name too long"),
        (["run", "CLIP", "--publish", "ipc://text.mp4"], "a file of this name exists, and is no socket"),
        (
            ["run", "CLIP", "--engine", "magic"],
            "must be one of auto, tensorrt, torch, openvino, identity, got 'magic'",
        ),
        (["run", "CLIP", "--model", "magic"], "got 'magic'"),
        (["run", "CLIP", "--model", "broken.json"], "broken.json: not a model manifest"),
        (["run", "CLIP", "--publish", "tcp://nowhere"], "'publish.endpoint' must be tcp://HOST:PORT"),
        (["run", "CLIP", "-c", "bad.toml"], "'engine.speed' is no setting"),
        (["run", "text.mp4"], "text.mp4"),
        (["run", "same=CLIP", "same=CLIP"], "'streams.name' must differ"),
        (["run", "CLIP", "--transport", "udp"], "'streams.0.transport' is for rtsp addresses, got "),
        (["run", "CLIP", "--client", "rtp"], "'streams.0.client' is for rtsp addresses, got "),
        (
            ["run", "rtsp://127.0.0.1/x", "--transport", "sctp"],
            "'streams.0.transport' must be 'tcp' or 'udp', got 'sctp'",
        ),
        (
            ["run", "-c", "cameras.toml", "--transport", "udp"],
            "--transport is for sources on the command line, got none",
        ),
        (["watch", "nonsense"], "endpoint must be a ZeroMQ address"),
        (["watch", "tcp://127.0.0.1:9", "--timeout", "0.2"], "no frame came for 0.2 s"),
        (["enhance", "none.mp4", "-o", "out.mp4"], "none.mp4"),
        (["enhance", "text.mp4", "-o", "out.mp4"], "text.mp4"),
        (["enhance", "CLIP", "-o", "CLIP"], "clip.mp4"),
        (
            ["enhance", "CLIP", "-o", "out.mp4", "--strength", "2"],
            "'restore.strength' must be auto, or from 0 to 1, got 2.0",
        ),
        (
            ["run", "CLIP", "--strength", "much"],
            "'restore.strength' must be auto, or from 0 to 1, got 'much'",
        ),
        (["evaluate"], "needs TRUTH and RESTORED"),
        (["evaluate", "--data", "none"], "none: data must be a folder"),
    ],
)
def test_bad_input_gets_one_line_and_a_status(
    tmp_path: Path, clip: Path, arguments: Sequence[str], reason: str
) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "broken.json").write_text("{}")
    (tmp_path / "cameras.toml").write_text('[[streams]]\nsource = "rtsp://127.0.0.1/x"\n')
    (tmp_path / "bad.toml").write_text("[engine]\nspeed = 1\n")
    before = sorted(tmp_path.iterdir())
    answer = deblurd(*(argument.replace("CLIP", str(clip)) for argument in arguments), cwd=tmp_path)
    assert answer.returncode == 1
    wrong = [line for line in answer.stderr.splitlines() if " INFO engine " not in line]  # which one was opened
    assert len(wrong) == 1, answer.stderr
    assert reason in wrong[0]
    assert "secret" not in answer.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/frames"


@pytest.fixture
def daemon(endpoint: str) -> Iterator[subprocess.Popen[str]]:
    """A daemon that plays the demo clip at its own speed once somebody listens."""
    arguments = [f"demo={MEDIA / 'demo_blurred.mp4'}", "--realtime", "--await-subscribers", "1", "--publish", endpoint]
    with subprocess.Popen([*DEBLURD, "run", *arguments], stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        yield process
        process.kill()


def test_a_daemon_serves_a_clip_to_another_process_and_ends_with_it(
    daemon: subprocess.Popen[str], endpoint: str, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    answer = deblurd("watch", endpoint, "--json", "--quiet", "--count", "5", "--timeout", "60", "--save", saved)
    assert answer.returncode == 0
    records = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [record["stream"] for record in records] == ["demo"] * 5
    assert {(record["epoch"], record["clock"]) for record in records} == {(0, "arrival")}
    assert [record["seq"] for record in records] == sorted(record["seq"] for record in records)
    for record in records:
        assert cv2.imread(str(saved / f"demo-{record['seq']:08d}.png")).shape == (360, 640, 3)
    assert daemon.wait(WAIT_S) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_daemon_cleanly(daemon: subprocess.Popen[str], endpoint: str, number: int) -> None:
    with Subscriber(endpoint) as subscriber:
        subscriber.receive(WAIT_S)
        began = time.monotonic()
        daemon.send_signal(number)
        assert daemon.wait(WAIT_S) == 0
    assert time.monotonic() - began < WAIT_S
    assert daemon.stderr is not None
    assert "Traceback" not in daemon.stderr.read()


def test_a_signal_ends_a_daemon_that_still_waits_for_subscribers(endpoint: str, clip: Path) -> None:
    arguments = [str(clip), "--await-subscribers", "1", "--publish", endpoint]
    with subprocess.Popen([*DEBLURD, "run", *arguments], stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stderr is not None
        assert any("publishing at" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0


def test_json_lines_go_to_standard_output_also_from_a_terminal(
    daemon: subprocess.Popen[str], endpoint: str, tmp_path: Path
) -> None:
    terminal, end = pty.openpty()
    command = [*DEBLURD, "watch", endpoint, "--json", "--count", "3"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=end, text=True, timeout=WAIT_S, cwd=REPOSITORY)
    os.close(end)
    os.close(terminal)
    assert [json.loads(line)["stream"] for line in answer.stdout.splitlines()] == ["demo"] * 3


def test_an_address_in_use_is_refused(tmp_path: Path, clip: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = deblurd("run", clip, "--publish", f"tcp://127.0.0.1:{taken.getsockname()[1]}")
    assert answer.returncode == 1
    assert answer.stderr.strip().endswith("the address is in use")


def test_a_truncated_clip_is_published_as_far_as_it_goes_and_the_status_says_so(tmp_path: Path, endpoint: str) -> None:
    whole = clips.write_video(tmp_path / "whole.mkv", count=60)
    broken = clips.truncated(whole, 0.6)
    answer = deblurd("run", broken, "--engine", "identity", "--publish", endpoint)
    assert answer.returncode == 1
    assert "broken" in answer.stderr or "truncated" in answer.stderr or "ends" in answer.stderr


def test_enhance_makes_a_clip_clearer_and_keeps_its_sound(tmp_path: Path) -> None:
    restored = tmp_path / "restored.mp4"
    assert deblurd("enhance", MEDIA / "demo_blurred.mp4", "-o", restored).returncode == 0
    before = json.loads(deblurd("evaluate", "--json", MEDIA / "demo_sharp.mp4", MEDIA / "demo_blurred.mp4").stdout)
    after = json.loads(deblurd("evaluate", "--json", MEDIA / "demo_sharp.mp4", restored).stdout)
    assert after[0]["psnr_db"] > before[0]["psnr_db"] + 1.0
    digests = [clips.packet_digests(path, "audio") for path in (MEDIA / "demo_blurred.mp4", restored)]
    assert digests[0] == digests[1]


def test_a_killed_enhance_leaves_no_file_under_the_final_name(tmp_path: Path) -> None:
    out = tmp_path / "out" / "restored.mp4"
    command = [*DEBLURD, "enhance", str(MEDIA / "demo_blurred.mp4"), "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=REPOSITORY) as process:
        _wait_for_any_file(out.parent)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130
    assert not list(tmp_path.rglob("*.mp4"))


def _wait_for_any_file(folder: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not (folder.is_dir() and any(folder.iterdir())):
        assert time.monotonic() < deadline

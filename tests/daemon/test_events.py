"""What a program is told by `deblurd enhance --json`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import clips
import pytest

from daemon.enhance import Job
from daemon.events import Events, beside_the_video

REPOSITORY = Path(__file__).parents[2]
JOB = Job(Path("a.mp4"), Path("b.mp4"))


def enhanced(*arguments: str | Path) -> tuple[int, list[dict[str, Any]], str]:
    """Status, events, and standard error."""
    command = [sys.executable, "-m", "daemon", "enhance", *map(str, arguments), "--engine", "identity", "--json"]
    environment = {**os.environ, "COLUMNS": "300", "PYTHONPATH": str(REPOSITORY)}
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    return answer.returncode, [json.loads(line) for line in answer.stdout.splitlines()], answer.stderr


def test_a_file_is_started_and_finished_and_all_else_is_on_standard_error(tmp_path):
    source = clips.write_video(tmp_path / "a.mkv", count=10, audio="aac", chapters=True)
    status, events, said = enhanced(source, "-o", tmp_path / "b.mkv")
    assert status == 0
    assert [event["event"] for event in events] == ["started", "finished"]
    assert {(event["input"], event["output"]) for event in events} == {(str(source), str(tmp_path / "b.mkv"))}
    last = events[-1]
    assert (last["status"], last["frames"], last["changed"], last["lost"]) == ("done", 10, [], [])
    assert last["kept"] == ["audio (aac)", "2 chapters"]
    assert "10 frames" in said
    assert "with audio (aac) and 2 chapters" in said


def test_what_was_lost_is_told_with_status_1(tmp_path):
    whole = clips.write_video(tmp_path / "a.mp4", count=50, container_options={"movflags": "+faststart"}, audio="aac")
    status, events, _ = enhanced(clips.truncated(whole, 0.6), "-o", tmp_path / "b.mp4")
    assert (status, events[-1]["status"]) == (1, "partial")
    assert "cut off" in events[-1]["lost"][0]


def test_of_several_files_each_has_its_end(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    clips.write_video(tmp_path / "in" / "a.mp4", count=2)
    (tmp_path / "in" / "b.mp4").write_text("no video")
    clips.write_video(tmp_path / "in" / "c.mp4", count=2)
    (tmp_path / "out" / "c.mp4").touch()
    status, events, _ = enhanced(tmp_path / "in", "-o", tmp_path / "out")
    assert status == 1
    ends = {Path(event["input"]).name: event for event in events if event["event"] != "started"}
    assert {name: event.get("status", event["event"]) for name, event in ends.items()} == {
        "a.mp4": "done",
        "b.mp4": "failed",
        "c.mp4": "skipped",
    }
    assert "must be a video file" in ends["b.mp4"]["error"]


def test_one_file_that_fails_is_told_once(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    status, events, said = enhanced(tmp_path / "a.mp4", "-o", tmp_path / "b.mp4")
    assert status == 1
    assert [event["event"] for event in events] == ["started", "failed"]
    assert "must be a video file" in said


def test_what_concerns_all_files_is_told_without_one(tmp_path):
    status, events, _ = enhanced(tmp_path / "none.mp4", "-o", tmp_path / "b.mp4")
    assert (status, events) == (1, [{"event": "failed", "error": f"{tmp_path}/none.mp4: no such file or folder"}])


def test_progress_comes_at_most_once_a_second_with_the_speed_of_this_run():
    told, clock = io.StringIO(), iter([0.0, 0.0, 0.4, 0.9, 1.0, 1.5, 2.5])
    events = Events(told, lambda: next(clock))
    events.started(JOB)
    for frames in (100, 104, 109, 110, 115, 125):  # the first hundred are of an interrupted run
        events.progress(JOB, frames, 145)
    lines = [json.loads(line) for line in told.getvalue().splitlines()]
    assert [(line["frames"], line["fps"], line["eta_s"]) for line in lines[1:]] == [(110, 10.0, 3.5), (125, 10.0, 2.0)]


def test_without_an_expected_number_there_is_no_time_left():
    told, clock = io.StringIO(), iter([0.0, 0.0, 2.0])
    events = Events(told, lambda: next(clock))
    events.started(JOB)
    events.progress(JOB, 1, None)
    events.progress(JOB, 21, None)
    assert json.loads(told.getvalue().splitlines()[-1])["eta_s"] is None


@pytest.mark.parametrize("name", ["none.mkv", "picture.png"])
def test_nothing_is_beside_the_video_of_what_is_none(tmp_path, name):
    assert beside_the_video(tmp_path / name) == []

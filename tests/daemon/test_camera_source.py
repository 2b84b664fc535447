"""Claims about cameras.

Machines that run tests have no camera. A driver of our own stands in, tests/fake_camera.c, which is preloaded into a
process and answers the system calls on one path: OpenCV's V4L2 backend above them is the real one. What real drivers
do besides is not shown here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from daemon.camera_source import CameraSource
from daemon.errors import SourceError
from daemon.source import LiveOptions

TESTS = Path(__file__).parents[1]
CAMERA = "/dev/video77"


@pytest.fixture(scope="session")
def driver(tmp_path_factory) -> Path:
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler, to stand in for a camera")
    library = tmp_path_factory.mktemp("camera") / "fake_camera.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, TESTS / "fake_camera.c", "-ldl"], check=True)
    return library


@pytest.fixture
def watch(driver):
    """Reads `device` in another process, where the fake camera is `at`; gives its states, frames, error and end."""

    def watched(device: str = CAMERA, *, at: str = CAMERA, camera: dict[str, object] | None = None, **plan):
        settings = {f"FAKE_CAMERA_{name.upper()}": str(value) for name, value in (camera or {}).items()}
        done = subprocess.run(
            [sys.executable, TESTS / "watch_camera.py", device, json.dumps(plan)],
            env=os.environ
            | settings
            | {
                "FAKE_CAMERA": at,
                "LD_PRELOAD": str(driver),
                "PYTHONPATH": str(TESTS.parent),
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stderr == ""
        assert done.returncode == 0
        *events, end = map(json.loads, done.stdout.splitlines())
        states = [event["state"] for event in events if "state" in event]
        errors = [event["error"] for event in events if "error" in event]
        assert all("\n" not in error for error in errors)
        return states, [event for event in events if "seq" in event], "".join(errors), end

    return watched


def test_frames_come_as_the_camera_makes_them(watch) -> None:
    states, frames, error, end = watch(frames=10)
    assert (states, error) == (["connecting", "live"], "")
    assert {tuple(frame["shape"]) for frame in frames} == {(480, 640, 3)}
    red, green, blue = frames[0]["left"]
    assert (red > 250, green < 5, blue < 5) == (True, True, True)
    assert all(sooner["right"] < later["right"] for sooner, later in pairwise(frames))
    assert end["threads"] == []


def test_times_are_the_drivers(watch) -> None:
    _, frames, _, _ = watch(frames=10)
    assert all(later["time_s"] - sooner["time_s"] > 0 for sooner, later in pairwise(frames))
    assert all(frame["clock"] == "arrival" and 0 <= frame["captured_ago_s"] < 5 for frame in frames)


def test_the_size_is_as_asked(watch) -> None:
    _, frames, error, _ = watch(frames=2, source={"size": [240, 320], "rate": 50, "pixel_format": "YUYV"})
    assert (frames[0]["shape"], error) == ([240, 320, 3], "")


def test_a_size_that_the_camera_lacks_is_refused_with_the_one_it_offers(watch) -> None:
    _, frames, error, _ = watch(source={"size": [1080, 1920]})
    assert f"camera {CAMERA}: has no size 1920x1080, offers 1280x720" in error
    assert frames == []


def test_a_pixel_format_that_the_camera_lacks_is_refused_with_the_one_it_offers(watch) -> None:
    assert "has no pixel format MJPG, offers YUYV" in watch(source={"pixel_format": "MJPG"})[2]


def test_damaged_and_cut_pictures_of_mjpeg_are_left_out_and_counted(watch, tmp_path) -> None:
    picture = tmp_path / "a.jpg"
    assert cv2.imwrite(str(picture), np.full((480, 640, 3), (0, 0, 200), np.uint8))
    _, frames, error, end = watch(camera={"jpeg": picture}, frames=10, source={"pixel_format": "MJPG"})
    assert error == ""
    assert {tuple(frame["shape"]) for frame in frames} == {(480, 640, 3)}
    for frame in frames:
        for side in ("left", "right", "below"):
            assert np.abs(np.subtract(frame[side], (200, 0, 0))).max() < 5
    assert end["counters"]["damaged_frames"] >= 3


def test_a_frame_above_the_limit_is_refused(watch) -> None:
    assert "at most 1000 pixels, got 640x480" in watch(options={"max_pixels": 1000})[2]


def test_a_camera_that_freezes_is_noticed(watch) -> None:
    states, frames, error, end = watch(camera={"freeze": 5}, options={"timeout_s": 1})
    assert states == ["connecting", "live", "frozen"]
    assert frames
    assert "gave no frame for 1 s" in error
    assert end["threads"] == []


def test_a_camera_that_never_gives_a_frame_is_noticed(watch) -> None:
    states, _, error, end = watch(camera={"freeze": 0}, options={"open_timeout_s": 0.5})
    assert states == ["connecting"]
    assert "gave no first frame within 0.5 s" in error
    assert end["threads"] == []


def test_a_first_frame_may_take_as_long_as_the_timeout_says(watch) -> None:
    _, _, error, end = watch(camera={"freeze": 0}, options={"open_timeout_s": 3})
    assert "gave no first frame within 3 s" in error
    assert end["took_s"] >= 3


def test_an_unplugged_camera_is_an_error_at_once(watch) -> None:
    states, frames, error, end = watch(camera={"unplug": 5}, options={"timeout_s": 100})
    assert states == ["connecting", "live"]
    assert frames
    assert error == f"camera {CAMERA}: was unplugged"
    assert end["threads"] == []


@pytest.mark.parametrize(
    ("camera", "close_on"), [({}, 3), ({}, "connecting"), ({"freeze": 3}, 0), ({"freeze": 0}, "connecting")]
)
def test_it_closes_within_a_second(watch, camera, close_on) -> None:
    _, _, error, end = watch(camera=camera, close_on=close_on, options={"timeout_s": 100, "open_timeout_s": 100})
    assert error == ""
    assert end["closing_s"] < 1
    assert end["threads"] == []


def test_a_driver_that_does_not_return_holds_up_neither_the_timeout_nor_the_end(watch) -> None:
    _, _, error, end = watch(camera={"stuck": 100}, options={"open_timeout_s": 0.5})
    assert "gave no first frame within 0.5 s" in error
    assert end["threads"] == ["camera-cam"]
    _, _, error, end = watch(camera={"stuck": 100}, close_on="connecting", options={"open_timeout_s": 100})
    assert error == ""
    assert end["closing_s"] < 1


def test_a_busy_camera_is_refused(watch) -> None:
    error = watch(camera={"busy": 1})[2]
    assert error == f"camera {CAMERA}: another program uses it (Fake Camera); end that first"


def test_a_node_without_video_is_refused(watch) -> None:
    assert f"camera {CAMERA}: gives no video (Fake Camera); there is " in watch(camera={"metadata": 1})[2]


def test_a_device_that_is_not_there_is_refused(watch) -> None:
    assert "camera /dev/video4321: no such device; there is " in watch("4321")[2]


def test_what_is_no_camera_is_refused(watch, tmp_path) -> None:
    (tmp_path / "a.mp4").touch()
    for path in (tmp_path / "a.mp4", tmp_path, Path("/dev/null")):
        assert f"camera {path}: must be a V4L2 camera, got something else" in watch(str(path))[2]


def test_a_device_without_permission_is_refused(watch) -> None:
    assert "no permission to open it; the user must be in the group" in watch(camera={"forbidden": 1})[2]


def test_the_cameras_that_there_are_can_be_listed(watch, tmp_path) -> None:
    for name in ("video10", "video2", "video3"):
        (tmp_path / name).touch()  # of which only the second is a camera
    camera = str(tmp_path / "video2")
    end = watch(camera, at=camera, frames=1, folder=str(tmp_path))[3]
    assert [(device["path"], device["name"]) for device in end["cameras"]] == [(camera, "Fake Camera")]
    end = watch(camera, at=camera, camera={"metadata": 1}, folder=str(tmp_path))[3]
    assert end["cameras"] == []


def test_many_attempts_leave_nothing_behind(watch) -> None:
    once, often = (watch(attempts=count, frames=1)[3] for count in (2, 20))
    assert (often["threads"], often["descriptors"]) == ([], once["descriptors"])


def test_making_a_source_touches_nothing() -> None:
    states: list[str] = []
    with CameraSource("/dev/none", LiveOptions(), stream="cam", on_state=states.append) as source:
        assert source.live
    assert states == []


def test_a_pixel_format_must_have_four_letters() -> None:
    with pytest.raises(SourceError, match="must be four letters, got 'MJPEG'"):
        CameraSource(0, LiveOptions(), stream="cam", on_state=lambda _: None, pixel_format="MJPEG")

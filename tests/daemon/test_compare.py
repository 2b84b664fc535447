"""Videos that show before and after."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import clips
import cv2
import numpy as np
import pytest
from models import STATE, echo_onnx, write_model

from daemon.compare import Comparison, compared
from daemon.encoding import Encoding
from daemon.enhance import Job, Settings, enhance
from daemon.errors import SourceError
from daemon.file_source import FileSource
from daemon.frame import Frame
from daemon.planes import with_change
from daemon.video import VideoJob, restore_video
from engine.backends import open_engine
from engine.identity import IdentityEngine
from engine.model import Manifest, Model
from engine.protocol import Engine, EngineOptions

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def engine() -> Iterator[Engine]:
    manifest = Manifest(id="none", file="none.onnx", sha256="0" * 64, stride=16, overlap_px=32)
    with IdentityEngine(Model(manifest, Path("none.json"), b""), EngineOptions()) as engine:
        yield engine


def lines_of(frame, bytes_a_pixel: int) -> list[np.ndarray]:
    """The bytes of every plane (H, W * bytes_a_pixel) that are seen."""
    planes = [(np.frombuffer(plane, np.uint8).reshape(plane.height, -1), plane.width) for plane in frame.planes]
    return [lines[:, : width * bytes_a_pixel] for lines, width in planes]


def compare(source: Path, target: Path, engine: Engine, how: Comparison) -> Path:
    job = VideoJob(source, target, Encoding(lossless=True), strength=1.0, comparison=how)
    restore_video(job, engine)
    return target


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "width", "height", "bytes_a_pixel"),
    [
        ("libx264", "yuv420p", 64, 48, 1),
        ("libx264", "yuv444p", 65, 47, 1),
        ("ffv1", "yuv420p", 65, 47, 1),
        ("ffv1", "yuv422p10le", 64, 48, 2),
        ("ffv1", "yuva420p", 64, 48, 1),
        ("ffv1", "gray", 33, 48, 1),
        ("ffv1", "bgr0", 33, 48, 4),
        ("ffv1", "gbrp10le", 33, 48, 2),
        ("ffv1", "yuv410p", 66, 50, 1),
    ],
)
def test_beside_each_other_stand_the_planes_as_they_were(
    tmp_path, engine, codec, pix_fmt, width, height, bytes_a_pixel
):
    source = clips.write_video(
        tmp_path / "a.mkv", count=2, codec=codec, pix_fmt=pix_fmt, width=width, height=height, audio="aac"
    )
    target = compare(source, tmp_path / "b.mkv", engine, "side")
    assert clips.times_of(target) == clips.times_of(source)
    assert clips.packet_digests(target, "audio") == clips.packet_digests(source, "audio")
    for old, new in zip(clips.frames_of(source), clips.frames_of(target), strict=True):
        assert new.width // 2 in (old.width, old.width - old.width % 2, old.width - old.width % 4)
        for was, both in zip(lines_of(old, bytes_a_pixel), lines_of(new, bytes_a_pixel), strict=True):
            half = both.shape[1] // 2
            assert (both[:, :half] == both[:, half:]).all()
            assert (both[:, :half] == was[: both.shape[0], :half]).all()


@pytest.fixture
def frame(tmp_path: Path) -> Iterator[Frame]:
    source = clips.write_video(tmp_path / "a.mkv", count=1, pix_fmt="yuv444p")
    with FileSource(source) as frames:
        yield from frames


def luma(frame) -> np.ndarray:
    return clips.planes_of(frame)[0].astype(int)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270, -90])
@pytest.mark.parametrize("how", ["side", "split"])
def test_what_was_is_on_the_left_however_a_player_turns_it(frame, how, rotation):
    plain = luma(with_change(frame.origin, frame.pixels, "yuv444p", frame.colour, (64, 48)))
    brighter = cv2.add(frame.pixels, (40, 40, 40, 0))
    shown = luma(compared(how, frame.origin, brighter, "yuv444p", frame.colour, (64, 48), rotation))
    shown = np.rot90(shown, rotation // 90)
    left, right = np.array_split(shown, 2, axis=1)
    if how == "side":
        assert np.abs(right - left - 34).max() <= 1
    else:
        change = shown - np.rot90(plain, rotation // 90)
        middle = change.shape[1] // 2
        assert (change[:, : middle - 1] == 0).all()
        assert np.abs(change[:, middle + 1 :] - 34).max() <= 1


def test_split_leaves_the_left_half_as_it_was_and_restores_the_right(tmp_path):
    source = clips.write_video(tmp_path / "a.mkv", count=3, pix_fmt="yuv444p")
    (tmp_path / "model").mkdir()
    model = write_model(tmp_path / "model", echo_onnx(), overlap_px=0, states=(STATE,))
    with open_engine("openvino", str(model)) as engine:
        target = compare(source, tmp_path / "b.mkv", engine, "split")
        restore_video(VideoJob(source, tmp_path / "c.mkv", Encoding(lossless=True), strength=1.0), engine)
    for path, part in ((source, slice(0, 31)), (tmp_path / "c.mkv", slice(33, 64))):
        for one, other in zip(clips.frames_of(path), clips.frames_of(target), strict=True):
            for x, y in zip(clips.planes_of(one), clips.planes_of(other), strict=True):
                assert (x[:, part] == y[:, part]).all()
    assert (luma(clips.frames_of(target)[0])[:, 31:33] > 230).all()


def test_a_picture_has_no_comparison(tmp_path, engine):
    cv2.imwrite(str(tmp_path / "a.png"), clips.smooth(0, 64, 48))
    with pytest.raises(SourceError, match="a comparison must be of a video, got a picture"):
        enhance(Job(tmp_path / "a.png", tmp_path / "b.png"), engine, Settings(comparison="side"))


def test_the_command_compares_a_part(tmp_path):
    source = clips.write_video(tmp_path / "a.mp4", count=50, audio="aac")
    options = ["--compare", "side", "--range", "1-", "--engine", "identity"]
    command = [sys.executable, "-m", "daemon", "enhance", source, "-o", tmp_path / "b.mp4", *options]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert answer.returncode == 0, answer.stderr
    frames = clips.frames_of(tmp_path / "b.mp4")
    assert (len(frames), frames[0].width, frames[0].height) == (25, 128, 48)

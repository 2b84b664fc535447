"""Contact sheets of real videos."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import clips
import cv2
import numpy as np
import pytest
from models import STATE, echo_onnx, write_model

from daemon.errors import SinkError, SourceError
from daemon.preview import CELL_PX, clock, preview
from daemon.timespan import Timespan
from engine.backends import open_engine
from engine.identity import IdentityEngine
from engine.model import Manifest, Model
from engine.protocol import Engine, EngineOptions

REPOSITORY = Path(__file__).parents[2]
TITLE_PX, GAP_PX = 28, 8


@pytest.fixture
def engine() -> Iterator[Engine]:
    manifest = Manifest(id="none", file="none.onnx", sha256="0" * 64, stride=16, overlap_px=32)
    with IdentityEngine(Model(manifest, Path("none.json"), b""), EngineOptions()) as engine:
        yield engine


def cells(sheet: Path, width: int, height: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pictures RGB before and after of every row, of (W, H) each."""
    image = cv2.imread(str(sheet))[..., ::-1]
    step = TITLE_PX + height + GAP_PX
    assert image.shape == (image.shape[0] // step * step, 2 * width + 3 * GAP_PX, 3)
    rows = [image[top + TITLE_PX : top + TITLE_PX + height] for top in range(0, image.shape[0], step)]
    return [(row[:, GAP_PX : GAP_PX + width], row[:, width + 2 * GAP_PX : 2 * (width + GAP_PX)]) for row in rows]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_moments_are_evenly_spread_and_show_what_the_video_shows_then(tmp_path, engine, suffix):
    source = clips.write_video(
        tmp_path / f"a{suffix}", count=100, options={"g": "30", "qp": "0", "preset": "ultrafast"}
    )
    times = preview(source, tmp_path / "sheet.png", 4, engine)
    assert times == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.05)
    for time_s, (before, after) in zip(times, cells(tmp_path / "sheet.png", 64, 48), strict=True):
        assert np.abs(before - clips.smooth(round(time_s * 25), 64, 48).astype(int)).mean() < 6  # by 4:2:0
        assert (before == after).all()
    assert names_in(tmp_path) == [source.name, "sheet.png"]


def test_what_comes_after_is_what_the_model_made_of_it_with_its_history(tmp_path):
    """The model's history is half of the one before plus the frame: without frames before, it would give the frame."""
    source = clips.write_video(tmp_path / "a.mp4", count=50)
    model = write_model(tmp_path, echo_onnx(), overlap_px=0, states=(STATE,))
    with open_engine("openvino", str(model)) as engine:
        preview(source, tmp_path / "sheet.png", 2, engine, strength=1.0)
    for before, after in cells(tmp_path / "sheet.png", 64, 48):
        assert after.mean() > 1.5 * before.mean()


def test_a_video_of_few_frames_has_few_moments(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.mp4", count=3)
    assert len(preview(source, tmp_path / "sheet.png", 10, engine)) == 3


def test_times_count_from_the_beginning_of_the_video(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.mkv", count=50, pts=range(500, 550))
    assert preview(source, tmp_path / "sheet.png", 1, engine) == pytest.approx([1.0], abs=0.05)


def test_a_raw_stream_without_times_has_a_preview_too(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.h264", count=50)
    assert preview(source, tmp_path / "sheet.jpg", 2, engine) == pytest.approx([0.5, 1.5], abs=0.1)


def test_a_picture_is_one_moment(tmp_path, engine):
    picture = clips.smooth(0, 64, 48)
    cv2.imwrite(str(tmp_path / "a.png"), picture[..., ::-1])
    assert preview(tmp_path / "a.png", tmp_path / "sheet.png", 5, engine) == [0.0]
    assert all((cell == picture).all() for cell in cells(tmp_path / "sheet.png", 64, 48)[0])


def test_large_frames_are_made_smaller_and_anamorphic_and_turned_ones_shown_as_players_do(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.mp4", count=2, width=1280, height=720, aspect=Fraction(4, 3), rotation=90)
    preview(source, tmp_path / "sheet.png", 1, engine)
    assert len(cells(tmp_path / "sheet.png", round(CELL_PX * 720 / (1280 * 4 / 3)), CELL_PX)) == 1


@pytest.mark.parametrize(("name", "reason"), [("a.mp4", "must end in one of .png"), ("none/a.png", "folder")])
def test_a_sheet_that_cannot_be_written_is_one_line(tmp_path, engine, name, reason):
    source = clips.write_video(tmp_path / "b.mp4", count=3)
    with pytest.raises(SinkError, match=reason):
        preview(source, tmp_path / name, 2, engine)
    assert names_in(tmp_path) == ["b.mp4"]


def test_a_sheet_that_exists_is_kept_unless_it_may_be_replaced(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.mp4", count=3)
    (tmp_path / "sheet.png").write_text("mine")
    with pytest.raises(SinkError, match="must not exist yet"):
        preview(source, tmp_path / "sheet.png", 2, engine)
    assert (tmp_path / "sheet.png").read_text() == "mine"
    preview(source, tmp_path / "sheet.png", 2, engine, overwrite=True)
    assert cells(tmp_path / "sheet.png", 64, 48)


def test_a_text_file_is_one_line_and_leaves_nothing(tmp_path, engine):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(SourceError, match="must be a video file"):
        preview(tmp_path / "a.mp4", tmp_path / "sheet.png", 2, engine)
    assert names_in(tmp_path) == ["a.mp4"]


def test_the_command_writes_the_sheet_and_nothing_else(tmp_path):
    source = clips.write_video(tmp_path / "a.mp4", count=10)
    command = [sys.executable, "-m", "daemon", "enhance", source, "-o", tmp_path / "b.jpg", "--preview", "3"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert (answer.returncode, answer.stdout) == (0, "")
    assert "3 moments" in answer.stderr
    assert names_in(tmp_path) == ["a.mp4", "b.jpg"]


@pytest.mark.parametrize(
    ("time_s", "text"), [(0.0, "00:00.000"), (59.9996, "01:00.000"), (754.25, "12:34.250"), (3661.5, "1:01:01.500")]
)
def test_times_read_like_a_clock(time_s, text):
    assert clock(time_s) == text


def test_moments_are_of_the_range(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.mp4", count=100, options={"g": "30", "qp": "0", "preset": "ultrafast"})
    times = preview(source, tmp_path / "sheet.png", 2, engine, span=Timespan.parse("1-2"))
    assert times == pytest.approx([1.25, 1.75], abs=0.05)
    with pytest.raises(SourceError, match="a range must have at least one frame"):
        preview(source, tmp_path / "none.png", 2, engine, span=Timespan.parse("10-"))


def test_a_preview_is_no_video_of_before_and_after(tmp_path):
    command = [sys.executable, "-m", "daemon", "enhance", "a.mp4", "-o", "b.png", "--preview", "3", "--compare", "side"]
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "300"}, cwd=REPOSITORY
    )
    assert answer.returncode == 2
    assert "must not be given with --preview" in answer.stderr

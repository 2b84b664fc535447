"""Parts of videos: what is in them, at which times, and with the sound and texts that belong there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import clips
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from models import STATE, echo_onnx, write_model

from daemon.encoding import Encoding
from daemon.enhance import Job, Settings, enhance
from daemon.errors import SourceError
from daemon.job import job_folder
from daemon.timespan import Timespan
from daemon.video import VideoJob, restore_video
from engine.backends import open_engine
from engine.identity import IdentityEngine
from engine.model import Manifest, Model
from engine.protocol import Engine, EngineOptions

REPOSITORY = Path(__file__).parents[2]
MADE = {"g": "12", "qp": "0", "preset": "ultrafast", "bf": "2"}


@pytest.fixture
def engine() -> Iterator[Engine]:
    manifest = Manifest(id="none", file="none.onnx", sha256="0" * 64, stride=16, overlap_px=32)
    with IdentityEngine(Model(manifest, Path("none.json"), b""), EngineOptions()) as engine:
        yield engine


def restored(source: Path, target: Path, engine: Engine, span: str) -> Path:
    encoding = Encoding(lossless=True)
    restore_video(VideoJob(source, target, encoding, strength=1.0, span=Timespan.parse(span)), engine)
    assert sorted(path.name for path in source.parent.iterdir()) == sorted([source.name, target.name])
    return target


def luma_of(path: Path) -> list[np.ndarray]:
    return [clips.planes_of(frame)[0] for frame in clips.frames_of(path)]


def sound_of(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size]


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("00:10-00:20", 10, 20),
        ("1:02:03.5-", Fraction("3723.5"), None),
        ("-12.25", 0, Fraction(49, 4)),
        ("90 - 02:00", 90, 120),
    ],
)
def test_a_range_is_read_as_it_is_written(text, start, end):
    assert Timespan.parse(text) == Timespan(Fraction(start), end)


@pytest.mark.parametrize("text", ["", "-", "10", "a-b", "20-10", "5-5", "1:2:3:4-", "--5", "1e3-"])
def test_what_is_no_range_is_one_line(text):
    with pytest.raises(SourceError, match="a range must "):
        Timespan.parse(text)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".mov"])
@pytest.mark.parametrize(("span", "first", "last"), [("1-3", 25, 75), ("0:01.51-", 38, 100), ("-2", 0, 50)])
def test_the_frames_of_the_range_are_there_and_begin_at_0(tmp_path, engine, suffix, span, first, last):
    source = clips.write_video(tmp_path / f"a{suffix}", count=100, options=MADE, audio="aac")
    target = restored(source, tmp_path / f"b{suffix}", engine, span)
    for old, new in zip(luma_of(source)[first:last], luma_of(target), strict=True):
        assert (old == new).all()
    times, all_times = clips.times_of(target), clips.times_of(source)
    assert [time - times[0] for time in times] == [time - all_times[first] for time in all_times[first:last]]
    if suffix != ".ts":
        assert times[0] == 0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_is_cut_with_the_pictures_and_stays_in_step(tmp_path, engine, suffix):
    source = clips.write_video(tmp_path / f"a{suffix}", count=100, options=MADE, audio="aac")
    target = restored(source, tmp_path / f"b{suffix}", engine, "1-3")
    expected = [(time - 1, data) for time, data in sound_of(source) if 1 <= time < 3]
    got = sound_of(target)
    assert [data for _, data in got] == [data for _, data in expected]
    assert all(abs(x - y) <= Fraction(1, 1000) for (x, _), (y, _) in zip(got, expected, strict=True))


def test_variable_times_stay_and_a_range_that_begins_between_frames_begins_at_the_next(tmp_path, engine):
    times = [0, 40, 80, 240, 250, 300, 1000, 1040, 1111, 1200]
    source = clips.write_video(tmp_path / "a.mkv", count=10, pts=times, time_base=Fraction(1, 1000))
    target = restored(source, tmp_path / "b.mkv", engine, "0.1-1.111")
    assert clips.times_of(target) == [Fraction(time - 240, 1000) for time in (240, 250, 300, 1000, 1040)]


def test_a_range_counts_from_where_players_begin(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.mkv", count=50, pts=range(500, 550), options=MADE)
    target = restored(source, tmp_path / "b.mkv", engine, "1-")
    assert all((x == y).all() for x, y in zip(luma_of(source)[25:], luma_of(target), strict=True))


def test_chapters_are_cut_and_moved(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.mkv", count=50, options=MADE, chapters=True)
    with av.open(str(restored(source, tmp_path / "b.mkv", engine, "0.8-2"))) as container:
        (one,) = container.chapters()
    assert one["metadata"]["title"] == "two"
    assert (one["start"] * one["time_base"], one["end"] * one["time_base"]) == (0, Fraction(1, 5))


def test_over_several_segments_the_part_is_what_the_whole_has_there(tmp_path):
    """With a history of every frame before, faded: the last eight are nearly all of it."""
    source = clips.write_video(
        tmp_path / "a.mp4", count=250, pts=range(0, 2500, 10), time_base=Fraction(1, 50), options=MADE
    )
    (tmp_path / "model").mkdir()
    model = write_model(tmp_path / "model", echo_onnx(), overlap_px=0, states=(STATE,))
    with open_engine("openvino", str(model)) as engine:
        for name, span in (("whole", None), ("part", Timespan.parse("14-31"))):
            encoding = Encoding(lossless=True)
            job = VideoJob(source, tmp_path / f"{name}.mp4", encoding, strength=1.0, span=span)
            restore_video(job, engine)
    whole, part = luma_of(tmp_path / "whole.mp4")[70:155], luma_of(tmp_path / "part.mp4")
    for old, new in zip(whole, part, strict=True):
        assert np.abs(old.astype(int) - new).max() <= 2


def test_another_range_is_another_job(tmp_path, engine, caplog):
    source = clips.write_video(
        tmp_path / "a.mp4", count=250, pts=range(0, 2500, 10), time_base=Fraction(1, 50), options=MADE
    )

    def stop() -> bool:
        return any(job_folder(tmp_path / "b.mp4").glob("*.packets"))

    with pytest.raises(KeyboardInterrupt):
        restore_video(VideoJob(source, tmp_path / "b.mp4", Encoding(), span=Timespan.parse("1-40")), engine, None, stop)
    result = restore_video(VideoJob(source, tmp_path / "b.mp4", Encoding(), span=Timespan.parse("1-30")), engine)
    assert result.kept == 0
    assert "another range" in caplog.text


@pytest.mark.parametrize("span", ["100-", "4.5-5"])
def test_a_range_without_frames_is_one_line_and_leaves_nothing(tmp_path, engine, span):
    source = clips.write_video(tmp_path / "a.mp4", count=100)
    with pytest.raises(SourceError, match="a range must have at least one frame, got none from"):
        restored(source, tmp_path / "b.mp4", engine, span)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_without_times_has_no_range(tmp_path, engine):
    source = clips.write_video(tmp_path / "a.h264", count=10)
    with pytest.raises(SourceError, match="a range must be of a video with times"):
        restored(source, tmp_path / "b.mkv", engine, "0.1-")


def test_a_picture_has_no_range(tmp_path, engine):
    cv2.imwrite(str(tmp_path / "a.png"), clips.smooth(0, 64, 48))
    with pytest.raises(SourceError, match="a range must be of a video, got a picture"):
        enhance(Job(tmp_path / "a.png", tmp_path / "b.png"), engine, Settings(span=Timespan.parse("1-2")))


def test_the_command_takes_a_range(tmp_path):
    source = clips.write_video(tmp_path / "a.mp4", count=50)
    options = ["--range", "-1", "--engine", "identity"]
    command = [sys.executable, "-m", "daemon", "enhance", source, "-o", tmp_path / "b.mp4", *options]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    assert answer.returncode == 0, answer.stderr
    assert "25 frames" in answer.stderr


def with_texts(source: Path, path: Path) -> Path:
    """The streams of `source`, a cover, and two subtitles, from 0.4 to 1.2 s and from 1.5 to 5 s."""
    texts = path.with_suffix(".srt")
    texts.write_text("1\n00:00:00,400 --> 00:00:01,200\nHello\n\n2\n00:00:01,500 --> 00:00:05,000\nWorld\n")
    with av.open(str(source)) as video, av.open(str(texts)) as text, av.open(str(path), "w") as output:
        streams = {stream: output.add_stream_from_template(stream) for stream in (*video.streams, *text.streams)}
        cover = output.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        cover.metadata.update(filename="cover.jpg", mimetype="image/jpeg")
        for picture in clips.video_frames(1, 64, 48, "yuvj420p"):
            output.mux(cover.encode(picture))
        for container in (video, text):
            for packet in container.demux():
                if packet.size:
                    packet.stream = streams[packet.stream]
                    output.mux(packet)
    texts.unlink()
    source.unlink()
    return path


def test_subtitles_are_cut_to_the_range_and_covers_stay(tmp_path, engine):
    plain = clips.write_video(tmp_path / "plain.mkv", count=100, options=MADE)
    source = with_texts(plain, tmp_path / "a.mkv")
    target = restored(source, tmp_path / "b.mkv", engine, "1-3")
    with av.open(str(target)) as container:
        assert [stream.type for stream in container.streams].count("video") == 2
        shown = [(p.pts, p.duration, bytes(p)) for p in container.demux(subtitles=0) if p.size]
    assert shown == [(0, 200, b"Hello"), (500, 1500, b"World")]

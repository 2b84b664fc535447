from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import av
import clips
import numpy as np
import pytest

from daemon.errors import SourceError
from daemon.file_source import FileSource

VFR = [0, 40, 80, 240, 250, 300, 1000, 1040, 1111, 1200]


def read(path, **options):
    with FileSource(path, **options) as source:
        return list(source), source


def refusal(path, **options) -> str:
    with pytest.raises(SourceError) as caught:
        read(path, **options)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert "Errno" not in text
    return text


def test_every_frame_comes_once_in_order(tmp_path):
    frames, source = read(clips.write_video(tmp_path / "a.mp4", count=30))
    assert [frame.seq for frame in frames] == list(range(30))
    assert source.damage == []
    assert source.frames_expected == 30
    assert source.rate == 25


def test_pixels_are_what_was_filmed(tmp_path):
    frames, _ = read(clips.write_video(tmp_path / "a.mkv", count=3, codec="ffv1", pix_fmt="yuv444p"))
    for number, frame in enumerate(frames):
        assert np.abs(frame.pixels - clips.smooth(number, 64, 48).astype(float)).mean() < 0.6


@pytest.mark.parametrize("threads", ["auto", "slice"])
def test_times_are_those_of_the_file_exactly(tmp_path, threads):
    path = clips.write_video(tmp_path / "a.mkv", count=10, pts=VFR, time_base=Fraction(1, 1000))
    frames, _ = read(path, threads=threads)
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(ms, 1000) for ms in VFR]


def test_a_late_start_stays_late(tmp_path):
    frames, _ = read(clips.write_video(tmp_path / "a.mkv", count=5, pts=range(250, 255)))
    assert frames[0].pts * frames[0].time_base == 10


def test_a_stream_without_times_gets_those_of_its_rate(tmp_path):
    frames, _ = read(clips.write_video(tmp_path / "a.h264", count=8))
    steps = {later.pts - sooner.pts for sooner, later in pairwise(frames)}
    assert {step * frames[0].time_base for step in steps} == {Fraction(1, 25)}


@pytest.mark.parametrize("threads", ["auto", "slice"])
def test_b_frames_in_avi_come_in_rising_order(tmp_path, threads):
    path = clips.write_video(tmp_path / "a.avi", count=20, options={"bf": "2"})
    frames, _ = read(path, threads=threads)
    assert {later.pts - sooner.pts for sooner, later in pairwise(frames)} == {1}


def test_what_a_player_must_know_travels_with_the_frame(tmp_path):
    path = clips.write_video(tmp_path / "a.mp4", rotation=90, aspect=Fraction(4, 3), matrix=1, color_range=2)
    frame = read(path)[0][0]
    assert (frame.rotation, frame.sample_aspect_ratio) == (90, Fraction(4, 3))
    assert (frame.colour.matrix, frame.colour.full_range) == (1, True)
    assert isinstance(frame.origin.frame, av.VideoFrame)
    assert frame.origin.pixels is frame.pixels
    assert set(frame.spent_ns) == {"decode", "convert"}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".h264", ".avi", ".ts"])
@pytest.mark.parametrize("cut", [1, 7, 25])
def test_ranges_join_to_the_whole(tmp_path, suffix, cut):
    path = clips.write_video(tmp_path / f"a{suffix}", count=30, options={"g": "10", "bf": "2"})
    whole, _ = read(path)
    boundary = whole[cut].pts
    first, _ = read(path, stop=boundary)
    second, _ = read(path, start=boundary)
    assert [frame.pts for frame in first + second] == [frame.pts for frame in whole]
    assert all(np.array_equal(part.pixels, frame.pixels) for part, frame in zip(first + second, whole, strict=True))


@pytest.mark.parametrize("name", ["a:b.mp4", "100%d.mp4", "with space & ü.mp4", "-dash.mp4"])
def test_any_file_name_will_do(tmp_path, name, monkeypatch):
    path = clips.write_video(tmp_path / "plain.mp4", count=2).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read(path.relative_to(tmp_path))[0]) == 2


def test_the_default_stream_is_shown_and_a_cover_is_not(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("libx264", rate=25) for _ in range(3)]
        dispositions = av.stream.Disposition.attached_pic, av.stream.Disposition(0), av.stream.Disposition.default
        for stream, disposition, width in zip(streams, dispositions, (32, 64, 96), strict=True):
            stream.width, stream.height, stream.pix_fmt, stream.disposition = width, 48, "yuv420p", disposition
        for stream in streams:
            for frame in clips.video_frames(2, stream.width, 48, "yuv420p"):
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    assert read(path)[0][0].width == 96


def test_a_cut_mp4_gives_what_is_there_and_says_what_is_not(tmp_path):
    path = clips.write_video(tmp_path / "a.mp4", count=50, container_options={"movflags": "+faststart"}, audio="aac")
    frames, source = read(clips.truncated(path, 0.6), threads="slice")
    assert 10 < len(frames) < 50
    assert any(line.startswith("the file is cut off: ") for line in source.damage)


def test_a_cut_mkv_gives_what_is_there_and_says_what_is_not(tmp_path):
    path = clips.write_video(tmp_path / "a.mkv", count=50)
    frames, source = read(clips.truncated(path, 0.6))
    assert 10 < len(frames) < 50
    assert any("of 2.000 s" in line for line in source.damage)


def test_a_damaged_packet_does_not_end_the_stream(tmp_path):
    path = clips.write_video(tmp_path / "a.mkv", count=30, options=clips.LOSSLESS | {"g": "1"})
    with av.open(str(path)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0)][12]
    data = path.read_bytes()
    assert data.count(packet) == 1
    path.write_bytes(data.replace(packet, bytes(len(packet))))
    frames, source = read(path, threads="slice")
    assert len(frames) == 29
    assert source.damage == ["the packet at 0.480 s did not decode (invalid data found when processing input)"]


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".mp4", {}),
        (".mp4", {"movflags": "+faststart"}),
        (".mp4", {"movflags": "frag_keyframe+empty_moov"}),
        (".mkv", {}),
        (".webm", {}),
        (".avi", {}),
        (".ts", {}),
        (".mov", {}),
        (".flv", {}),
    ],
)
def test_a_whole_file_is_not_called_cut(tmp_path, suffix, options):
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    sound = "libopus" if suffix == ".webm" else "aac"
    path = clips.write_video(tmp_path / f"a{suffix}", count=40, codec=codec, audio=sound, container_options=options)
    frames, source = read(path)
    assert len(frames) == 40
    assert source.damage == []


def test_an_edited_file_is_not_called_cut(tmp_path):
    path, edited = clips.write_video(tmp_path / "a.mp4", count=40, options={"g": "40"}), tmp_path / "edited.mp4"
    with av.open(str(path)) as source, av.open(str(edited), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts -= 10 * 512  # MP4 keeps what lies before 0 and hides it by an edit list
                packet.dts -= 10 * 512
                packet.stream = stream
                output.mux(packet)
    frames, reader = read(edited)
    assert len(frames) < 40
    assert reader.damage == []


@pytest.mark.parametrize(("pix_fmt", "depth"), [("yuv420p", 8), ("yuv420p10le", 10), ("gbrp12le", 12)])
def test_more_than_8_bits_are_16_where_that_is_asked_for(tmp_path, pix_fmt, depth):
    path = clips.write_video(tmp_path / "a.mkv", count=2, codec="ffv1", pix_fmt=pix_fmt)
    shallow, source = read(path)
    assert source.warnings == ([f"restored at 8 bits: the video has {depth}"] if depth > 8 else [])
    deep, source = read(path, deep=True)
    assert source.warnings == []
    assert shallow[0].pixels.dtype == np.uint8
    assert deep[0].pixels.dtype == (np.uint16 if depth > 8 else np.uint8)
    assert source.depth == depth
    assert np.abs(deep[0].pixels / (257 if depth > 8 else 1) - shallow[0].pixels).max() < 1.5


def test_close_ends_the_iteration(tmp_path):
    with FileSource(clips.write_video(tmp_path / "a.mp4", count=30)) as source:
        frames = iter(source)
        next(frames)
        source.close()
        assert list(frames) == []


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.mp4")


def test_a_folder_is_refused(tmp_path):
    assert "got a folder" in refusal(tmp_path)


def test_a_text_file_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("no video at all\n" * 100)
    assert "must be a video file" in refusal(path)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    path.touch()
    assert "must be a video file" in refusal(path)


def test_a_file_without_its_index_is_refused(tmp_path):
    assert "without its index" in refusal(clips.truncated(clips.write_video(tmp_path / "a.mp4"), 0.5))


def test_a_file_of_sound_is_refused(tmp_path):
    assert "got only audio" in refusal(clips.write_audio(tmp_path / "a.m4a"))


def test_a_file_of_sound_with_a_cover_is_refused(tmp_path):
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4") as output:
        sound = output.add_stream("aac", rate=48000)
        cover = output.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for frame in clips.video_frames(1, 64, 48, "yuvj420p"):
            output.mux(cover.encode(frame))
        output.mux(cover.encode(None))
        clips.write_tone(output, sound, seconds=1)
    assert "got only a cover picture" in refusal(path)


def test_a_stream_without_frames_is_refused(tmp_path):
    path = clips.write_video(tmp_path / "a.mkv", count=1)
    data = path.read_bytes()
    with av.open(str(path)) as container:
        place = next(container.demux(video=0)).pos
    path.write_bytes(data[:place])
    assert "must have at least one frame" in refusal(path)


def test_a_frame_above_the_limit_is_refused(tmp_path):
    path = clips.write_video(tmp_path / "a.mp4")
    assert "at most 1000 pixels, got 64x48" in refusal(path, max_pixels=1000)

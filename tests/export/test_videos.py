"""Videos as material: which frames are taken, that they are exact, and what is refused."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import av
import clips
import cv2
import numpy as np
import pytest
from av.video.stream import VideoStream

from export.errors import ExportError
from export.pictures import halves
from export.videos import count_frames, find_material, read_frames, read_material, read_numbered


def write_levels(
    path: Path, levels: Sequence[int], *, codec: str = "ffv1", pix_fmt: str = "bgr0", gop: int = 12
) -> Path:
    """A video, lossless, whose frames are `level(k)`, one for each of `levels`."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25, options={"qp": "0"} if codec == "libx264" else {})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 64, 48, pix_fmt, gop
        for shown in levels:
            frame = av.VideoFrame.from_ndarray(level(shown), format="rgb24")
            output.mux(stream.encode(frame.reformat(format=pix_fmt)))
        output.mux(stream.encode(None))
    return path


def damaged(path: Path, *packets: int) -> Path:
    """A copy beside the file, in which these packets hold nothing but zeros."""
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in packets:
        begin, size = places[number]
        assert begin
        data[begin : begin + size] = bytes(size)
    copy = path.with_name(f"damaged{path.suffix}")
    copy.write_bytes(data)
    return copy


def level(shown: int) -> np.ndarray:
    """A picture RGB (48, 64, 3) of one grey level, with a corner in colour."""
    picture = np.full((48, 64, 3), shown, np.uint8)
    picture[:24, :32] = (255, 40, 7)
    return picture


def level_of(frame: np.ndarray) -> int:
    return int(np.median(frame[30:, 40:]))


RISING = range(0, 240, 3)  # 80 frames


def test_frames_are_evenly_spaced_and_exactly_those_that_were_encoded(tmp_path: Path) -> None:
    given = list(read_frames(write_levels(tmp_path / "rising.mkv", RISING), 8))
    assert len(given) == 8
    for frame, shown in zip(given, RISING[5::10], strict=True):
        assert np.array_equal(frame, level(shown))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi", "ts", "m4v"])
@pytest.mark.parametrize("gop", [4, 250])
def test_every_container_gives_the_frames_that_were_asked_for(tmp_path: Path, suffix: str, gop: int) -> None:
    """Also between key frames, and behind frames that are stored before those that they are shown after."""
    video = write_levels(tmp_path / f"rising.{suffix}", RISING, codec="libx264", pix_fmt="yuv444p", gop=gop)
    assert [level_of(frame) for frame in read_frames(video, 8)] == pytest.approx(list(RISING[5::10]), abs=1)
    assert count_frames(video) == 80
    numbered = [(number, level_of(frame)) for number, frame in read_numbered(video, 8)]
    assert [number for number, _ in numbered] == list(range(5, 80, 10))
    assert [shown for _, shown in numbered] == pytest.approx(list(RISING[5::10]), abs=1)


def test_a_video_with_fewer_frames_gives_them_all(tmp_path: Path) -> None:
    video = write_levels(tmp_path / "short.mkv", [0, 3, 6])
    assert [level_of(frame) for frame in read_frames(video, 16)] == [0, 3, 6]


def test_colours_are_those_of_the_videos_own_matrix(tmp_path: Path) -> None:
    video = clips.write_video(tmp_path / "bt709.mp4", count=3, pix_fmt="yuv444p", matrix=1, color_range=1)
    (frame,) = read_frames(video, 1)
    assert np.abs(frame.astype(int) - clips.smooth(1, 64, 48)).max() <= 3
    assert abs(float(frame.mean() - clips.smooth(1, 64, 48).mean())) < 0.2


def test_a_video_that_was_held_sideways_is_upright(tmp_path: Path) -> None:
    video = clips.write_video(tmp_path / "held.mp4", count=1, pix_fmt="yuv444p", rotation=90)
    (frame,) = read_frames(video, 1)
    upright = np.rot90(clips.smooth(0, 64, 48))
    assert frame.shape == upright.shape
    assert np.abs(frame.astype(int) - upright).max() <= 4


def test_frames_that_repeat_the_one_before_are_left_out(tmp_path: Path) -> None:
    video = write_levels(tmp_path / "stills.mkv", [20] * 16 + [60] * 16 + [61] * 16 + [20] * 16)
    assert len(list(read_frames(video, 16))) == 16
    assert [level_of(frame) for frame in read_material(video, 16)] == [20, 60, 20]


def test_a_truncated_video_gives_what_decodes(tmp_path: Path) -> None:
    whole = write_levels(tmp_path / "whole.mkv", RISING)
    given = list(read_frames(clips.truncated(whole, 0.5), 8))
    assert 4 <= len(given) <= 8
    assert all(np.array_equal(frame, level(level_of(frame))) for frame in given)
    assert len({level_of(frame) for frame in given}) == len(given)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_nothing_stands_in_for_a_damaged_frame(tmp_path: Path, codec: str) -> None:
    """Packet 10 is lost, in a group that begins with the key frame 8."""
    whole = write_levels(tmp_path / "whole.mp4", RISING, codec=codec, pix_fmt="yuv420p", gop=4)
    torn = damaged(whole, 10)
    right, given = dict(read_numbered(whole, 80)), dict(read_numbered(torn, 80))
    assert list(right) == list(range(80))
    assert list(given) == [number for number in range(80) if number not in range(8, 12)]
    assert all(np.array_equal(frame, right[number]) for number, frame in given.items())
    assert len(list(read_frames(torn, 80))) == 79


def test_a_lost_frame_in_a_container_without_times_leaves_no_number_certain(tmp_path: Path) -> None:
    whole = write_levels(tmp_path / "whole.avi", RISING, codec="mpeg4", pix_fmt="yuv420p", gop=4)
    torn = damaged(whole, 10)
    assert len(list(read_frames(torn, 8))) >= 7
    with pytest.raises(ExportError, match=r"damaged\.avi: no group of frames, .* decodes without damage"):
        list(read_numbered(torn, 8))


def test_a_truncated_mp4_without_its_index_is_refused_by_name(tmp_path: Path) -> None:
    whole = write_levels(tmp_path / "whole.mp4", RISING, codec="libx264", pix_fmt="yuv420p")
    with pytest.raises(ExportError, match=r"truncated\.mp4: not a video that decodes"):
        list(read_frames(clips.truncated(whole, 0.5)))


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100])
def test_a_file_that_is_no_video_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.mkv").write_bytes(content)
    with pytest.raises(ExportError, match=r"odd\.mkv: not a video that decodes"):
        list(read_frames(tmp_path / "odd.mkv"))


def test_a_file_with_sound_only_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"song\.mp4: not a video that decodes \(no video stream\)"):
        list(read_frames(clips.write_audio(tmp_path / "song.mp4")))


def test_interlaced_video_is_refused(tmp_path: Path) -> None:
    video = clips.write_video(
        tmp_path / "tv.mkv", count=4, options={"qp": "0", "preset": "ultrafast", "x264-params": "interlaced=1:tff=1"}
    )
    with pytest.raises(ExportError, match="must be progressive"):
        list(read_frames(video))


def test_pictures_and_videos_are_found_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/x.MP4", "a/y.webm", "z.png", "notes.txt", "a/b/song.mp3"):
        (tmp_path / name).touch()
    found = find_material([tmp_path, tmp_path / "a"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/b/x.MP4", "a/y.webm", "z.png"]


def test_a_folder_that_is_named_twice_in_different_ways_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uni").mkdir()
    (tmp_path / "uni" / "x.png").touch()
    (tmp_path / "link").symlink_to("uni")
    monkeypatch.chdir(tmp_path)
    assert find_material([Path("uni"), tmp_path / "uni", Path("link")]) == [Path("uni/x.png")]


@pytest.mark.parametrize("given", [".", "..", "../uni/."])
def test_a_folder_given_without_its_name_is_an_origin_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    (tmp_path / "uni" / "deep").mkdir(parents=True)
    (tmp_path / "uni" / "x.png").touch()
    monkeypatch.chdir(tmp_path / "uni" / "deep" if given == ".." else tmp_path / "uni")
    assert [path.parent.name for path in find_material([Path(given)])] == ["uni"]


def test_folders_without_any_picture_or_video_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ExportError, match=rf"^{tmp_path}: no picture or video found$"):
        find_material([tmp_path])


def test_a_name_that_is_not_utf8_is_a_name(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.webp")
    (tmp_path / name).touch()
    assert sorted(map(len, halves(find_material([tmp_path])))) == [0, 1]


def test_a_file_stays_in_its_half_whatever_its_letters(tmp_path: Path) -> None:
    """As before names that are not UTF-8 were read: a run that goes on must find the same halves."""
    names = [tmp_path / "o" / f"café{number}.png" for number in range(20)]
    expected = [path for path in names if zlib.crc32(f"o/{path.name}".encode()) >> 31]
    assert halves(names)[1] == expected


def test_a_picture_is_material_of_one(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "one.png"), level(12))
    assert len(list(read_material(tmp_path / "one.png"))) == 1

"""Interlaced frames become progressive ones: as a decoder gives them, and within the sources that have a decoder."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import av
import clips
import numpy as np
import pytest
from live_clips import Mark, decoded, make_clip, picture, read_mark
from rtsp_server import RtspServer
from web_server import Answer, WebServer

from daemon.address import Address
from daemon.colour import colour_of
from daemon.deinterlace import Deinterlacer
from daemon.network_source import NetworkSource
from daemon.rtsp.source import RtspSource
from daemon.source import LiveOptions

PROGRESSIVE = LiveOptions(deinterlace=True)


def woven(**shape) -> list[av.VideoFrame]:
    return list(decoded(make_clip(frames=20, interlaced=True, **shape)).values())


def flat(**shape) -> list[av.VideoFrame]:
    return list(decoded(make_clip(frames=20, **shape)).values())


def luma(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="gray").astype(float)


def comb(frame: av.VideoFrame) -> float:
    """How much neighbouring lines differ beyond those of one field."""
    lines = luma(frame)[64:]
    return np.abs(lines[1:-1] * 2 - lines[:-2] - lines[2:]).mean() - np.abs(lines[2:] - lines[:-2]).mean()


def through(frames, notes=None) -> list[tuple[av.VideoFrame, object]]:
    filtered: Deinterlacer[object] = Deinterlacer()
    done = []
    for frame, note in zip(frames, range(len(frames)) if notes is None else notes, strict=True):
        done += filtered.push(frame, note)
    return done + filtered.flush()


def test_one_progressive_frame_comes_for_each_interlaced_one_with_its_note():
    frames = woven()
    done = through(frames)
    assert [note for _, note in done] == list(range(20))
    assert [read_mark(frame.to_ndarray(format="gray")).number for frame, _ in done] == list(range(20))
    assert not any(frame.interlaced_frame for frame, _ in done)
    assert all(comb(frame) < comb(frames[number]) / 2 for frame, number in done[1:-1])


def test_a_frame_waits_for_the_next_one_and_the_last_one_for_the_end():
    frames, filtered = woven(), Deinterlacer[int]()
    came = [[note for _, note in filtered.push(frame, number)] for number, frame in enumerate(frames)]
    assert came == [[], *([number] for number in range(19))]
    assert [note for _, note in filtered.flush()] == [19]
    assert filtered.flush() == []


def test_progressive_frames_are_given_at_once_and_untouched_until_an_interlaced_one_comes():
    frames, filtered = flat(), Deinterlacer[int]()
    assert all(filtered.push(frame, 0)[0][0] is frame for frame in frames)
    assert filtered.flush() == []


def test_a_progressive_frame_among_interlaced_ones_stays_as_it_is():
    frames = woven()
    frames[8:12] = flat()[8:12]
    done = through(frames)
    assert [note for _, note in done] == list(range(20))
    assert all((luma(done[number][0]) == luma(frames[number])).all() for number in range(8, 12))
    assert comb(done[6][0]) < comb(frames[6]) / 2


def test_another_size_or_format_gives_what_waited_and_goes_on():
    other = picture(Mark(3, 0), 480, 272).reformat(format="yuv422p")
    frames = [*woven()[:5], *woven(width=480, height=272)[:5], other, *flat()[:5]]
    done = through(frames)
    assert [note for _, note in done] == list(range(16))
    assert [(frame.width, frame.format.name) for frame, _ in done] == [
        (frame.width, frame.format.name) for frame in frames
    ]


@pytest.mark.parametrize(
    "times",
    [[*range(10), *range(100_000, 100_010)], [*range(1000, 1010), *range(10)], [5] * 20, [None] * 20],
    ids=["a jump forward", "a jump back", "no progress", "none"],
)
def test_whatever_the_times_say_every_frame_comes_in_its_place(times):
    frames = woven()
    for frame, time in zip(frames, times, strict=True):
        frame.pts, frame.time_base = time, Fraction(1, 90_000)
    assert [note for _, note in through(frames, times)] == times


def test_colour_and_rotation_are_kept():
    frames = woven(rotation=90)
    for frame in frames:
        frame.colorspace, frame.color_range = 1, 2
    done = through(frames)
    assert {colour_of(frame) for frame, _ in done} == {colour_of(frames[0])}
    assert {frame.rotation for frame, _ in done} == {90}


def test_a_file_on_a_web_server_keeps_its_last_frame(tmp_path):
    data = clips.write_video(tmp_path / "a.mp4", count=15, options={"x264-params": "tff=1"}).read_bytes()
    with (
        WebServer({"/a.mp4": Answer(data, "video/mp4")}) as server,
        NetworkSource(Address.parse(server.url("/a.mp4")), PROGRESSIVE, stream="cam") as source,
    ):
        frames = list(source)
    assert [round(frame.time_s * 25) for frame in frames] == list(range(15))
    assert not any(frame.origin.interlaced_frame for frame in frames)


@pytest.mark.parametrize("kind", [NetworkSource, RtspSource])
def test_the_last_frame_before_damage_does_not_wait_for_the_first_one_after_it(kind):
    clip = make_clip(frames=100, rate=50, gop=50, interlaced=True)
    units = list(clip.units)
    units[10] = replace(units[10], data=units[10].data[:100])
    with (
        RtspServer(replace(clip, units=tuple(units))) as server,
        kind(Address.parse(server.url()), PROGRESSIVE, stream="cam") as source,
    ):
        came = []
        for frame in source:
            came.append((read_mark(frame.pixels).number, server.sent[-1].index))
            if len(came) == 20:
                break
    assert [number for number, _ in came] == [*range(10), *range(50, 60)]
    assert came[9][1] < 50

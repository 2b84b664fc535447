"""Where a video is cut, found by its packets alone."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import av
import clips
import numpy as np
import pytest

from daemon.file_source import FileSource
from daemon.plan import PRIME_FRAMES, SEGMENT_S, plan_of

GOP = {"g": "50", "bf": "2", "sc_threshold": "0", "preset": "ultrafast", "qp": "30"}


def long_video(path, *, count=800, **options):
    return clips.write_video(path, count=count, **({"options": GOP} | options))


def read(path, segment, *, primed=False):
    """(pts, pixels) of the frames of a segment; `primed` also of those before it."""
    start = segment.start
    source = FileSource(
        path,
        start=start.pts if start else None,
        stop=segment.stop,
        key=segment.prime if primed and start else start,
        prime=PRIME_FRAMES if primed and start else 0,
    )
    with source:
        return [(frame.pts, frame.pixels) for frame in source]


def whole(path):
    with FileSource(path) as source:
        return [(frame.pts, frame.pixels) for frame in source]


def assert_same(parts, frames):
    assert [pts for pts, _ in parts] == [pts for pts, _ in frames]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(parts, frames, strict=True))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts", ".flv"])
def test_segments_begin_at_key_frames_far_enough_apart_and_join_to_the_whole(tmp_path, suffix):
    path = long_video(tmp_path / f"a{suffix}")
    plan = plan_of(path)
    assert plan.why_one == ""
    assert len(plan.segments) == 4  # of 10 s each in 32 s
    assert plan.packets == 800
    starts = [segment.start.pts * plan.time_base for segment in plan.segments[1:]]
    assert all(later - sooner >= SEGMENT_S for sooner, later in pairwise(starts))
    assert [segment.stop for segment in plan.segments[:-1]] == [segment.start.pts for segment in plan.segments[1:]]
    assert_same([frame for segment in plan.segments for frame in read(path, segment)], whole(path))


@pytest.mark.parametrize("codec", ["libx265", "mpeg2video"])
def test_open_groups_of_pictures_lose_nothing(tmp_path, codec):
    options = {
        "libx265": {
            "preset": "ultrafast",
            "x265-params": "log-level=none:open-gop=1:keyint=50:min-keyint=50:bframes=3",
        },
        "mpeg2video": {"g": "25", "bf": "2"},
    }[codec]
    suffix = ".mkv" if codec == "libx265" else ".ts"
    path = long_video(tmp_path / f"a{suffix}", count=600, codec=codec, options=options)
    plan = plan_of(path)
    assert len(plan.segments) > 1
    assert_same([frame for segment in plan.segments for frame in read(path, segment)], whole(path))


def test_the_plan_depends_on_nothing_but_the_file(tmp_path):
    path = long_video(tmp_path / "a.mp4", audio="aac")
    assert plan_of(path) == plan_of(path)


def test_frames_before_a_segment_give_it_its_history(tmp_path):
    path = long_video(tmp_path / "a.mp4")
    frames = whole(path)
    for segment in plan_of(path).segments[1:]:
        first = next(number for number, (pts, _) in enumerate(frames) if pts == segment.start.pts)
        got = read(path, segment, primed=True)
        assert_same(got, frames[first - PRIME_FRAMES : first - PRIME_FRAMES + len(got)])


def test_history_reaches_back_over_several_key_frames(tmp_path):
    path = long_video(tmp_path / "a.mp4", options=GOP | {"g": "3", "bf": "0"})
    frames = whole(path)
    segment = plan_of(path).segments[1]
    assert read(path, segment, primed=True)[PRIME_FRAMES][0] == segment.start.pts
    assert segment.prime.pts < segment.start.pts
    first = next(number for number, (pts, _) in enumerate(frames) if pts == segment.prime.pts)
    assert 0 <= next(n for n, (pts, _) in enumerate(frames) if pts == segment.start.pts) - first - PRIME_FRAMES < 3


def test_history_reaches_back_to_the_beginning_where_less_comes_before(tmp_path):
    path = long_video(tmp_path / "a.mp4", count=40, pts=range(0, 2000, 50), options=GOP | {"g": "1", "bf": "0"})
    frames = whole(path)
    plan = plan_of(path)
    assert (len(plan.segments), plan.segments[1].prime, plan.segments[2].prime.pts) == (8, None, frames[2][0])
    assert_same(read(path, plan.segments[1], primed=True), frames[:10])


def test_variable_rates_are_cut_by_time(tmp_path):
    times = [n * 40 if n < 100 else 4000 + (n - 100) * 400 for n in range(200)]
    path = long_video(tmp_path / "a.mkv", count=200, pts=times, time_base=Fraction(1, 1000), options=GOP | {"g": "10"})
    plan = plan_of(path)
    assert [len(read(path, segment)) for segment in plan.segments] == [segment.packets for segment in plan.segments]
    assert len(plan.segments) > 3


@pytest.mark.parametrize(
    ("suffix", "why"), [(".h264", "it has frames without times"), (".avi", "AVI has no times of presentation")]
)
def test_what_has_no_times_is_one_segment(tmp_path, suffix, why):
    plan = plan_of(long_video(tmp_path / f"a{suffix}"))
    assert (len(plan.segments), plan.why_one, plan.packets) == (1, why, 800)


def test_a_video_with_one_key_frame_is_one_segment(tmp_path):
    plan = plan_of(long_video(tmp_path / "a.mp4", options=GOP | {"g": "10000"}))
    assert (len(plan.segments), plan.why_one) == (1, "")


def test_times_that_go_back_make_one_segment(tmp_path):
    first = long_video(tmp_path / "a.ts", count=300)
    second = long_video(tmp_path / "b.ts", count=300)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    plan = plan_of(joined)
    assert len(plan.segments) == 1
    assert plan.why_one
    assert plan.packets == 600


def test_an_edited_file_is_cut_where_it_is_shown(tmp_path):
    path, edited = long_video(tmp_path / "a.mp4"), tmp_path / "edited.mp4"
    with av.open(str(path)) as source, av.open(str(edited), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts -= 10 * 512  # MP4 keeps what lies before 0 and hides it by an edit list
                packet.dts -= 10 * 512
                packet.stream = stream
                output.mux(packet)
    plan = plan_of(edited)
    assert len(plan.segments) == 4
    frames = whole(edited)
    assert len(frames) < 800
    assert_same([frame for segment in plan.segments for frame in read(edited, segment)], frames)


def test_a_damaged_key_frame_at_a_cut_loses_no_frame_beside_it(tmp_path):
    path = long_video(tmp_path / "a.mkv", options=GOP | {"bf": "0"})
    segment = plan_of(path).segments[1]
    with av.open(str(path)) as container:
        packet = next(bytes(p) for p in container.demux(video=0) if p.pts == segment.start.pts)
    data = path.read_bytes()
    assert data.count(packet) == 1
    path.write_bytes(data.replace(packet, packet[:40] + bytes(len(packet) - 40)))
    plan = plan_of(path)
    parts = [pts for each in plan.segments for pts, _ in read(path, each)]
    assert parts == [pts for pts, _ in whole(path)]


def test_damage_is_told_by_the_segment_that_it_is_in_and_no_other(tmp_path):
    path = long_video(tmp_path / "a.mkv", options=clips.LOSSLESS | {"g": "1"}, count=600)
    with av.open(str(path)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0)][300]
    data = path.read_bytes()
    assert data.count(packet) == 1
    path.write_bytes(data.replace(packet, bytes(len(packet))))
    told = []
    for segment in plan_of(path).segments:
        start = segment.start.pts if segment.start else None
        with FileSource(path, start=start, stop=segment.stop, key=segment.start) as source:
            list(source)
            told.append(source.damage)
    assert told == [[], ["the packet at 12.000 s did not decode (invalid data found when processing input)"], []]

"""Claims about playing a finite source again and again."""

from __future__ import annotations

import threading
from dataclasses import replace
from fractions import Fraction
from itertools import islice, pairwise

import clips
import numpy as np
import pytest
from streams import GivenSource, numbered

from daemon.errors import SourceError
from daemon.file_source import FileSource
from daemon.loop import Looped
from daemon.pace import Paced

VFR = [0, 40, 80, 240, 250, 300]


def played(source, count):
    with source:
        return list(islice(source, count))


def test_numbers_and_times_go_on_over_plays(tmp_path) -> None:
    path = clips.write_video(tmp_path / "a.mp4", count=5)
    frames = played(Looped(lambda: FileSource(path)), 17)
    assert [frame.seq for frame in frames] == list(range(17))
    assert {later.pts * later.time_base - sooner.pts * sooner.time_base for sooner, later in pairwise(frames)} == {
        Fraction(1, 25)
    }
    assert {frame.epoch for frame in frames} == {0}
    assert np.array_equal(frames[0].pixels, frames[15].pixels)


def test_uneven_times_stay_exact_and_the_last_frame_lasts_as_long_as_the_one_before(tmp_path) -> None:
    path = clips.write_video(tmp_path / "a.mkv", count=6, pts=VFR, time_base=Fraction(1, 1000))
    frames = played(Looped(lambda: FileSource(path)), 12)
    assert [frame.pts for frame in frames] == VFR + [350 + ms for ms in VFR]


def test_a_file_that_starts_late_does_so_once(tmp_path) -> None:
    path = clips.write_video(tmp_path / "a.mkv", count=3, pts=range(250, 253))
    times = [frame.time_s for frame in played(Looped(lambda: FileSource(path)), 6)]
    assert times == pytest.approx([10 + i / 25 for i in range(6)])


def test_a_single_frame_goes_on_in_time() -> None:
    frames = played(Looped(lambda: GivenSource([numbered(0)])), 4)
    assert all(sooner.pts < later.pts for sooner, later in pairwise(frames))


def test_times_that_jump_back_within_a_play_do_not_move_the_next_play_back() -> None:
    given = [replace(numbered(i), pts=pts) for i, pts in enumerate([0, 1, 2, 0])]
    assert [frame.pts for frame in played(Looped(lambda: GivenSource(given)), 8)] == [0, 1, 2, 0, 3, 4, 5, 3]


def test_frames_without_times_stay_without() -> None:
    frames = played(Looped(lambda: GivenSource([replace(numbered(i), pts=None) for i in range(2)])), 5)
    assert [(frame.seq, frame.pts) for frame in frames] == [(i, None) for i in range(5)]


def test_what_breaks_is_not_played_again() -> None:
    with (
        Looped(lambda: GivenSource([numbered(0)], error="broken")) as source,
        pytest.raises(SourceError, match="broken"),
    ):
        list(source)


def test_a_file_that_is_gone_at_its_next_play_is_an_error(tmp_path) -> None:
    path = clips.write_video(tmp_path / "a.mkv", count=2)
    with Looped(lambda: FileSource(path)) as source, pytest.raises(SourceError, match="no such file"):
        for frame in source:
            if frame.seq == 1:
                path.unlink()


def test_a_missing_file_is_an_error_at_once(tmp_path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        Looped(lambda: FileSource(tmp_path / "none.mp4"))


def test_a_source_without_frames_is_refused_instead_of_played_for_ever() -> None:
    with Looped(lambda: GivenSource([])) as source, pytest.raises(SourceError, match="at least one frame"):
        list(source)


def test_every_play_but_the_last_is_let_go() -> None:
    made: list[GivenSource] = []

    def make() -> GivenSource:
        made.append(GivenSource([numbered(0)]))
        return made[-1]

    assert len(played(Looped(make), 5)) == 5
    assert len(made) == 5
    assert all(source.closed.is_set() for source in made)


def test_closing_ends_it_in_a_play_and_between_plays() -> None:
    source: Looped | None = None

    def make() -> GivenSource:
        if source is not None:
            source.close()  # as another thread may, just while the next play is made
        return GivenSource([numbered(0), numbered(1)])

    source = Looped(make)
    assert len(played(source, 10)) == 2

    with Looped(lambda: GivenSource([numbered(0), numbered(1)])) as source:
        frames = iter(source)
        next(frames)
        source.close()
        assert list(frames) == []


def test_another_thread_closes_an_endless_paced_loop(tmp_path) -> None:
    path = clips.write_video(tmp_path / "a.mp4", count=3)
    source = Paced(Looped(lambda: FileSource(path)))
    frames = []
    seen = threading.Event()

    def play() -> None:
        with source:
            for frame in source:
                frames.append(frame)
                if frame.seq == 7:
                    seen.set()

    player = threading.Thread(target=play)
    player.start()
    assert seen.wait(60)
    source.close()
    player.join(60)
    assert not player.is_alive()
    due = [frame.arrived_ns / 1e9 for frame in frames]
    assert all(abs(later - sooner - 1 / 25) < 1e-3 for sooner, later in pairwise(due))

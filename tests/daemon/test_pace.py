"""Claims about playing a file at its own speed."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

from streams import GivenSource, numbered

from daemon.pace import MOST_EARLY_S, Paced


def test_frames_come_no_sooner_than_they_are_due() -> None:
    began = time.monotonic()
    with Paced(GivenSource([numbered(i) for i in range(6)])) as source:
        frames = list(source)
    assert [frame.seq for frame in frames] == list(range(6))
    assert time.monotonic() - began >= 5 / 25


def test_a_frames_age_counts_from_when_it_was_due() -> None:
    with Paced(GivenSource([numbered(i) for i in range(4)])) as source:
        due = [frame.arrived_ns for frame in source]
    steps = [(after - before) / 1e9 for before, after in pairwise(due)]
    assert all(abs(step - 1 / 25) < 1e-3 for step in steps)


def test_times_that_jump_neither_hang_nor_end_the_stream() -> None:
    times = [0, 1, 2, 2**62, 2**62 + 1, 0, 1, 25 * 3600 * 24]
    frames = [replace(numbered(i), pts=pts) for i, pts in enumerate(times)]
    began = time.monotonic()
    with Paced(GivenSource(frames)) as source:
        assert [frame.seq for frame in source] == list(range(8))
    assert time.monotonic() - began < MOST_EARLY_S


def test_closing_ends_a_wait_for_the_next_frame() -> None:
    source = Paced(GivenSource([numbered(0), replace(numbered(1), pts=25 * 9)]))
    with source:
        iterator = iter(source)
        next(iterator)
        source.close()
        assert next(iterator, None) is None

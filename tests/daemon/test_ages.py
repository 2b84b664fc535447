"""Claims about the ages that are counted."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from streams import Collector, numbered

from daemon.ages import BOUNDS_S, AgeCounts, AgedSink


def counted(*ages_s: float) -> AgeCounts:
    sink = AgedSink(Collector())
    for age_s in ages_s:
        sink.add(age_s)
    return sink.ages()


def test_a_frame_goes_to_the_sink_as_it_is_and_its_age_is_counted():
    kept = Collector()
    sink = AgedSink(kept)
    frame = replace(numbered(0), arrived_ns=time.monotonic_ns() - 50_000_000)
    assert sink.lend(frame).shape == frame.pixels.shape
    sink.send(frame)
    sink.close()
    assert kept.frames == [frame]
    assert kept.closed == 1
    assert sink.ages().count == 1
    assert sink.ages().sum_s >= 0.05
    assert sink.ages().quantile_s(1.0) > 0.045


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_quantiles_are_exact_to_a_bucket(share: float):
    ages_s = np.random.default_rng(0).lognormal(math.log(0.02), 0.8, 5000)
    found = counted(*ages_s).quantile_s(share)
    assert found == pytest.approx(np.quantile(ages_s, share), rel=0.08)


def test_of_one_frame_every_quantile_is_its_age():
    assert counted(0.04).quantile_s(0.5) == counted(0.04).quantile_s(0.99) == pytest.approx(0.04, rel=0.07)


def test_without_frames_there_is_no_age():
    assert AgeCounts().quantile_s(0.5) is None


def test_an_interval_knows_nothing_of_what_was_before():
    sink = AgedSink(Collector())
    for _ in range(1000):
        sink.add(5.0)
    before = sink.ages()
    sink.add(0.01)
    interval = sink.ages().since(before)
    assert interval.count == 1
    assert interval.sum_s == pytest.approx(0.01)
    assert interval.quantile_s(0.99) == pytest.approx(0.01, rel=0.07)


@pytest.mark.parametrize(("age_s", "shown_s"), [(-1.0, BOUNDS_S[0]), (0.0, BOUNDS_S[0]), (3600.0, BOUNDS_S[-1])])
def test_ages_beyond_the_bounds_count_as_the_bound(age_s: float, shown_s: float):
    assert counted(age_s).quantile_s(0.5) == shown_s


def test_cumulative_counts_end_with_all():
    table = counted(0.00005, 0.01, 0.5, 1000.0).cumulative()
    bounds, counts = zip(*table, strict=True)
    assert bounds == (*BOUNDS_S[::5], math.inf)
    assert list(counts) == sorted(counts)
    assert (counts[0], dict(table)[1.0], counts[-2:]) == (1, 3, (3, 4))


def test_threads_may_count_at_once():
    sink = AgedSink(Collector())
    threads = [threading.Thread(target=lambda: [sink.add(0.01) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sink.ages().count == 8000
    assert sink.ages().sum_s == pytest.approx(80.0)

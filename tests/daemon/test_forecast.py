"""Claims about foretelling when an engine begins another batch. Times are given in milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import brighten_onnx, write_model

from daemon.forecast import SLACK_NS, Forecast
from engine.backends import open_engine
from engine.protocol import EngineOptions

SLACK_MS = SLACK_NS / 1e6


class Clocked:
    """A forecast for a real engine, with times in milliseconds."""

    def __init__(self, folder: Path, concurrent: int) -> None:
        path = write_model(folder, brighten_onnx())
        # Of the identity engine all slots are computed at once: nothing in it takes time.
        with open_engine("identity", str(path), EngineOptions(slots=concurrent)) as engine:
            self.forecast = Forecast(engine)

    def submitted(self, kind: str, at_ms: float) -> object:
        return self.forecast.submitted(kind, round(at_ms * 1e6))

    def ready(self, batch: object, at_ms: float) -> None:
        self.forecast.ready(batch, round(at_ms * 1e6))

    def wait_ms(self, at_ms: float) -> float:
        return self.forecast.wait_ns(round(at_ms * 1e6)) / 1e6

    def learn(self, kind: str, took_ms: float, at_ms: float = 1) -> None:
        self.ready(self.submitted(kind, at_ms), at_ms + took_ms)


@pytest.fixture
def single(tmp_path: Path) -> Clocked:
    return Clocked(tmp_path, 1)


def test_an_idle_engine_is_not_waited_for(single: Clocked) -> None:
    single.learn("a", 20)
    assert single.wait_ms(100) == 0


def test_a_batch_of_unknown_duration_is_not_waited_for(single: Clocked) -> None:
    single.submitted("a", 1)
    assert single.wait_ms(2) <= 0


def test_a_frame_waits_until_just_before_the_running_batch_ends(single: Clocked) -> None:
    single.learn("a", 20)
    single.submitted("a", 100)
    assert single.wait_ms(105) == pytest.approx(15 - SLACK_MS)


def test_the_slowest_recent_preparation_is_allowed_for(single: Clocked) -> None:
    for ms in (1, 4, 2):
        single.forecast.prepared(ms * 1_000_000)
    single.learn("a", 20)
    single.submitted("a", 100)
    assert single.wait_ms(105) == pytest.approx(15 - 4 - SLACK_MS)


def test_the_shortest_of_the_last_batches_of_its_kind_counts(single: Clocked) -> None:
    for ms in (5, *[20, 30, 25, 22, 21, 40, 26, 27]):  # the first is forgotten by now
        single.learn("a", ms)
    single.learn("b", 3)
    single.submitted("a", 100)
    assert single.wait_ms(100) == pytest.approx(20 - SLACK_MS)


def test_batches_that_wait_are_counted_from_when_the_one_before_them_ends(single: Clocked) -> None:
    single.learn("a", 20)
    single.learn("b", 5)
    first = single.submitted("a", 100)
    single.submitted("b", 101)
    assert single.wait_ms(110) == pytest.approx(10 + 5 - SLACK_MS)
    single.ready(first, 123)
    assert single.wait_ms(124) == pytest.approx(4 - SLACK_MS)


def test_what_is_overdue_is_expected_at_once(single: Clocked) -> None:
    single.learn("a", 20)
    single.learn("b", 5)
    single.submitted("a", 100)
    single.submitted("b", 101)
    assert single.wait_ms(150) == pytest.approx(5 - SLACK_MS)


def test_an_engine_with_room_for_two_is_waited_for_until_the_first_of_two_ends(tmp_path: Path) -> None:
    double = Clocked(tmp_path, 2)
    double.learn("a", 20)
    double.submitted("a", 100)
    assert double.wait_ms(101) == 0
    double.submitted("a", 107)
    assert double.wait_ms(110) == pytest.approx(10 - SLACK_MS)
    double.submitted("a", 111)
    assert double.wait_ms(112) == pytest.approx(15 - SLACK_MS)

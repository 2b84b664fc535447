"""How a live stream is doing, and how often it says so."""

from __future__ import annotations

import logging

import pytest

from daemon.status import LINES_AT_ONCE, StreamStatus, spelled


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def status(clock: Clock, caplog: pytest.LogCaptureFixture) -> StreamStatus:
    caplog.set_level(logging.INFO)
    return StreamStatus("cam", clock)


def test_a_stream_goes_through_its_states(status: StreamStatus, clock: Clock) -> None:
    status.attempt()
    assert (status.snapshot().state, status.snapshot().attempts) == ("connecting", 1)
    clock.now_s = 101
    status.progress("live")
    assert (status.snapshot().state, status.snapshot().since_s) == ("live", 101)
    status.progress("frozen")
    status.failed("no frame for 5 s", 0.5)
    assert (status.snapshot().state, status.snapshot().error) == ("retrying", "no frame for 5 s")
    status.attempt()
    status.progress("live")
    assert (status.snapshot().reconnects, status.snapshot().failures) == (1, 0)
    status.ended()
    assert status.snapshot().state == "ended"


def test_each_change_is_a_line(status: StreamStatus, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    status.attempt()
    status.failed("connection refused", 0.7)
    clock.now_s += 4
    status.attempt()
    status.progress("live")
    status.progress("live")
    assert caplog.messages == [
        "cam: connecting",
        "cam: connection refused; next attempt in 0.7 s",
        "cam: live after 1 failed attempt in 4 s",
    ]


def test_a_camera_that_fails_for_a_day_fills_no_disk(
    status: StreamStatus, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(8640):
        status.attempt()
        status.failed("connection refused", 10.0)
        clock.now_s += 10
    assert len(caplog.messages) <= LINES_AT_ONCE + 86400 / 300 + 1
    assert "changes since the last line" in caplog.messages[-1]
    assert "failed " in caplog.messages[-1]


def test_a_line_that_was_held_back_is_made_up_for(
    status: StreamStatus, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3 * LINES_AT_ONCE):
        status.attempt()
        status.failed("connection refused", 0.1)
    status.attempt()
    status.progress("live")
    assert "live" not in caplog.messages[-1]
    clock.now_s += 600
    status.report()
    assert caplog.messages[-1].startswith("cam: live")


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "3 s"), (119, "119 s"), (180, "3 min"), (7300, "2 h"), (2e5, "2 days")]
)
def test_durations_are_spelled_for_people(seconds: float, words: str) -> None:
    assert spelled(seconds) == words

"""A live source that breaks is tried again, and stays one stream."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import pytest
from streams import numbered

from daemon.errors import SourceError
from daemon.frame import Frame
from daemon.persistent import Persistent, Retry
from daemon.status import StreamStatus

SOON = Retry(min_s=0.001, max_s=0.002)


class Attempt:
    """Gives some frames and then breaks, or waits to be closed if it has no error."""

    live = True
    damage: Sequence[str] = ()

    def __init__(self, frames: int, error: str = "", *, lost: int = 0) -> None:
        self.counters: Mapping[str, int] = {"lost_packets": lost}
        self._frames, self._error = frames, error
        self.waits = threading.Event()
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        for seq in range(self._frames):
            yield numbered(seq)
        if self._error:
            self.waits.set()
            raise SourceError(self._error)
        self.waits.set()
        self._closed.wait()

    def close(self) -> None:
        self._closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def persistent(attempts: Sequence[Attempt], retry: Retry = SOON) -> tuple[Persistent, StreamStatus]:
    left, status = iter(attempts), StreamStatus("cam")
    return Persistent(lambda _: next(left), retry=retry, status=status, chance=random.Random(0)), status


def taken(source: Persistent, count: int) -> list[Frame]:
    frames = iter(source)
    return [next(frames) for _ in range(count)]


def test_numbers_go_on_and_epochs_count_reconnects() -> None:
    source, status = persistent([Attempt(0, "refused"), Attempt(2, "died"), Attempt(0, "refused"), Attempt(3)])
    frames = taken(source, 5)
    assert [frame.seq for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.epoch for frame in frames] == [0, 0, 1, 1, 1]
    assert (status.snapshot().state, status.snapshot().reconnects, status.snapshot().error) == ("live", 1, "refused")


def test_what_attempts_count_is_summed() -> None:
    source, _ = persistent([Attempt(1, "died", lost=3), Attempt(2, lost=4)])
    frames = iter(source)
    next(frames)
    next(frames)
    assert source.counters == {"lost_packets": 7}


def test_it_never_gives_up_unless_told() -> None:
    source, status = persistent([*(Attempt(0, "refused") for _ in range(100)), Attempt(1)])
    assert len(taken(source, 1)) == 1
    assert status.snapshot().attempts == 101


def test_told_so_it_gives_up_with_the_last_error() -> None:
    source, status = persistent([Attempt(0, "refused") for _ in range(3)], Retry(0.001, 0.002, attempts=3))
    with pytest.raises(SourceError, match=r"^refused \(given up after 3 attempts\)$"):
        list(source)
    assert status.snapshot().state == "ended"


@pytest.mark.parametrize(("frames", "error"), [(1, ""), (0, "refused")], ids=["live", "before the next attempt"])
def test_close_ends_it_in_every_state(frames: int, error: str) -> None:
    attempt = Attempt(frames, error)
    source, status = persistent([attempt], Retry(3600, 3600))
    thread = threading.Thread(target=lambda: list(source))
    thread.start()
    assert attempt.waits.wait(10)
    source.close()
    thread.join(10)
    assert not thread.is_alive()
    assert status.snapshot().state == "ended"


def test_the_wait_grows_with_every_failure_up_to_its_most_and_is_never_the_same() -> None:
    chance, retry = random.Random(0), Retry()
    for failures, most in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (1000, 10.0)]:
        waits = [retry.wait_s(failures, chance) for _ in range(100)]
        assert max(0.5, most / 2) <= min(waits) < max(waits) <= most
    assert min(retry.wait_s(1, chance, lasting=True) for _ in range(100)) >= 5

"""Sources and sinks whose frames a test can see, and frames whose pixels tell their number."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from daemon.errors import SinkError, SourceError
from daemon.frame import Frame


def numbered(seq: int, size: tuple[int, int] = (32, 48), *, stream: str = "cam", epoch: int = 0) -> Frame:
    """A frame of (H, W) = `size` with noise that is the same for each `seq`, at 25 frames a second."""
    pixels = np.random.default_rng(seq).integers(0, 200, (*size, 3), dtype=np.uint8)
    return Frame(stream, seq, seq, Fraction(1, 25), time.time_ns(), time.monotonic_ns(), pixels, epoch=epoch)


class GivenSource:
    """Yields the frames it was given; then ends, or breaks with `error`."""

    def __init__(self, frames: Sequence[Frame], *, live: bool = False, error: str = "") -> None:
        self.live = live
        self._frames, self._error = frames, error
        self.closed = threading.Event()
        self.damage: list[str] = []

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._frames:
            if self.closed.is_set():
                return
            yield replace(frame, arrived_ns=time.monotonic_ns())
        if self._error:
            raise SourceError(self._error)

    def close(self) -> None:
        self.closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class EndlessSource(GivenSource):
    """A live source that yields frames as fast as they are taken, until it is closed."""

    def __init__(self, size: tuple[int, int] = (32, 48)) -> None:
        super().__init__((), live=True)
        self._size = size

    def __iter__(self) -> Iterator[Frame]:
        seq = 0
        while not self.closed.is_set():
            yield replace(numbered(seq, self._size), arrived_ns=time.monotonic_ns())
            seq += 1


class Collector:
    """A sink that keeps what it is sent; it can be held shut, and can break after some frames."""

    def __init__(self, *, break_after: int | None = None, shut: bool = False) -> None:
        self.frames: list[Frame] = []
        self.closed = 0
        self.arrived = threading.Condition()
        self.open = threading.Event()
        if not shut:
            self.open.set()
        self._break_after = break_after

    def lend(self, frame: Frame) -> NDArray[np.uint8]:
        return np.zeros((frame.height, frame.width, 3), np.uint8)

    def send(self, frame: Frame) -> None:
        self.open.wait()
        if self._break_after is not None and len(self.frames) >= self._break_after:
            raise SinkError("the sink is broken")
        with self.arrived:
            self.frames.append(frame)
            self.arrived.notify_all()

    def close(self) -> None:
        self.closed += 1

    def wait_for(self, count: int, timeout_s: float = 60) -> None:
        """Wait until `count` frames are there."""
        with self.arrived:
            enough = self.arrived.wait_for(lambda: len(self.frames) >= count, timeout_s)
            assert enough, f"only {len(self.frames)} frames came"

"""How old frames are when they are handed to their sink, counted in buckets.

Knows a frame's times and what a sink is; nothing of pixels, nor of who asks.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from .frame import Frame, Pixels
from .sink import Sink

_A_DECADE: Final = 20
"""Buckets from one power of ten to the next: each is 12% wide."""
BOUNDS_S: Final = tuple(10 ** (n / _A_DECADE) for n in range(-4 * _A_DECADE, 2 * _A_DECADE + 1))
"""The upper bounds of the buckets, 0.1 ms to 100 s; one more bucket holds what is older."""


@dataclass(frozen=True)
class AgeCounts:
    """How many ages fell into each bucket, one more than there are BOUNDS_S; and their sum."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    sum_s: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def since(self, before: AgeCounts) -> AgeCounts:
        """Those that came after `before`, which was taken of the same ages earlier."""
        return AgeCounts(
            tuple(now - then for now, then in zip(self.counts, before.counts, strict=True)), self.sum_s - before.sum_s
        )

    def quantile_s(self, share: float) -> float | None:
        """The age in seconds that `share`, 0 to 1, of all are at most; exact to a bucket. None where there are none."""
        wanted = max(1, math.ceil(share * self.count))
        for number, so_far in enumerate(accumulate(self.counts)):
            if so_far >= wanted:
                upper = BOUNDS_S[min(number, len(BOUNDS_S) - 1)]
                lower = BOUNDS_S[number - 1] if 0 < number < len(BOUNDS_S) else upper
                return math.sqrt(lower * upper)
        return None

    def cumulative(self, every: int = 5) -> Sequence[tuple[float, int]]:
        """For every so manieth bound, in seconds, how many are at most that, as Prometheus has it; the last is inf."""
        so_far = list(accumulate(self.counts))
        return [*list(zip(BOUNDS_S, so_far, strict=False))[::every], (math.inf, so_far[-1])]


class AgedSink:
    """A sink that counts how old each frame is when another one has taken it; a `daemon.sink.Sink`.

    Of a slow sink, the time that it takes is part of the age. Any thread may ask.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def ages(self) -> AgeCounts:
        """Of all frames so far."""
        with self._lock:
            return AgeCounts(tuple(self._counts), self._sum_s)

    def add(self, age_s: float) -> None:
        with self._lock:
            self._counts[bisect_left(BOUNDS_S, age_s)] += 1
            self._sum_s += age_s

    def lend(self, frame: Frame) -> Pixels:
        return self._sink.lend(frame)

    def send(self, frame: Frame) -> None:
        self._sink.send(frame)
        self.add((time.monotonic_ns() - frame.arrived_ns) / 1e9)

    def close(self) -> None:
        self._sink.close()

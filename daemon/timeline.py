"""The times of a stream's frames as one line that never goes back.

Knows frames' times; nothing of who needs them.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from statistics import median_low
from typing import Final

from .frame import Frame

RATE: Final = 90_000
"""Ticks in a second, as in RTP: exact for all usual frame rates."""

_JUMP_BACK: Final = RATE
"""Further back than this is a clock that began anew; less is a frame out of order."""
_STEPS: Final = 25


class Timeline:
    """Gives frames their time in ticks, from 0 for the first, each after the one before it.

    Times are the source's own, so a gap stays a gap. Where they begin anew, after a reconnect or a jump back, and
    where there are none, the time between two frames is that between their arrivals at the daemon.
    """

    def __init__(self) -> None:
        self._last: tuple[Fraction | None, int, int] | None = None  # its own ticks, epoch, arrived_ns
        self._ticks = 0
        self._offset = Fraction(0)
        self._steps: deque[int] = deque(maxlen=_STEPS)

    @property
    def step(self) -> int | None:
        """Ticks from frame to frame as a rule; None before the second."""
        return median_low(self._steps) if self._steps else None

    def place(self, frame: Frame) -> int:
        own = _own_ticks(frame)
        last, self._last = self._last, (own, frame.epoch, frame.arrived_ns)
        if last is None:
            self._offset = -(own or Fraction(0))
            return 0
        before, epoch, arrived_ns = last
        passed = max(1, round((frame.arrived_ns - arrived_ns) * RATE / 10**9))
        if own is None:
            ticks = self._ticks + passed
        elif before is None or frame.epoch != epoch or own + self._offset < self._ticks - _JUMP_BACK:
            ticks = self._ticks + passed
            self._offset = ticks - own
        else:
            ticks = max(round(own + self._offset), self._ticks + 1)
        if frame.epoch == epoch:
            self._steps.append(ticks - self._ticks)
        self._ticks = ticks
        return ticks


def _own_ticks(frame: Frame) -> Fraction | None:
    return None if frame.pts is None else frame.pts * frame.time_base * RATE

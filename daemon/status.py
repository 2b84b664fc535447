"""How a live stream is doing: its state, since when, and what went wrong last.

Knows neither sources nor how they are retried: who drives a stream tells it here, everybody may look.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

from .source import Progress

log = logging.getLogger(__name__)

State = Literal["connecting", "live", "frozen", "retrying", "ended"]

LINES_AT_ONCE: Final = 12
LINE_EVERY_S: Final = 300.0
"""After so many lines at once, there is one more for so many seconds: a camera that fails for months fills no disk."""


@dataclass(frozen=True)
class Snapshot:
    """A stream at one moment.

    since_s: monotonic clock, seconds, when the state began.
    error: what ended the last attempt that failed, in one line; empty where none did.
    attempts: how often it was tried to connect.
    failures: attempts that failed since the stream was live last; a stream that breaks is one, too.
    reconnects: how often the stream was live again.
    """

    state: State = "connecting"
    since_s: float = 0.0
    error: str = ""
    attempts: int = 0
    failures: int = 0
    reconnects: int = 0


class StreamStatus:
    """The state of one stream, and a line in the log for each change of it. Threads may share it."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._now = Snapshot(since_s=clock())
        self._was_live = self._is_new = False
        self._broken_since_s = clock()
        self._retry_s = 0.0
        self._lines = _Budget(LINES_AT_ONCE, LINE_EVERY_S, clock())
        self._untold = 0

    def snapshot(self) -> Snapshot:
        with self._lock:
            return self._now

    def attempt(self) -> None:
        """A new attempt begins."""
        with self._lock:
            self._is_new = True
            self._enter("connecting", attempts=self._now.attempts + 1)
            # Later ones were announced when the one before them failed.
            self._tell() if self._now.attempts == 1 else log.debug("%s: connecting", self.name)

    def progress(self, state: Progress) -> None:
        """The attempt that goes on has come so far."""
        with self._lock:
            if state == self._now.state or state == "connecting" or self._now.state == "ended":
                return
            if state == "live":
                again = self._is_new and self._was_live
                self._enter("live", reconnects=self._now.reconnects + again)
                self._tell()
                self._was_live, self._is_new = True, False
                self._now = replace(self._now, failures=0)
            else:
                self._enter(state)
                self._tell()

    def failed(self, error: str, retry_s: float) -> None:
        """The attempt ended in `error`; the next one comes in `retry_s`."""
        with self._lock:
            if not self._now.failures:
                self._broken_since_s = self._clock()
            self._retry_s = retry_s
            self._enter("retrying", error=error, failures=self._now.failures + 1)
            self._tell()

    def ended(self, error: str = "") -> None:
        """Nothing more will come. What there is to say of it, says who knows the frames."""
        with self._lock:
            if self._now.state != "ended":
                self._enter("ended", error=error or self._now.error)
            self._untold = 0

    def report(self) -> None:
        """Make up for lines that were held back, once there may be one again; to be called now and then."""
        if self._untold:
            with self._lock:
                if self._untold:
                    self._untold -= 1  # the state itself, which is told now
                    self._tell()

    def _enter(self, state: State, **changes: int | str) -> None:
        self._now = replace(self._now, state=state, since_s=self._clock(), **changes)  # type: ignore[arg-type]

    def _tell(self) -> None:
        if not self._lines.take(self._clock()):
            self._untold += 1
            return
        more = f" ({self._untold} changes since the last line)" if self._untold else ""
        self._untold = 0
        wrong = self._now.state in ("frozen", "retrying") or (self._now.state == "connecting" and self._now.failures)
        log.log(logging.ERROR if wrong else logging.INFO, "%s: %s%s", self.name, self._line(), more)

    def _line(self) -> str:
        now = self._now
        broken = spelled(self._clock() - self._broken_since_s)
        if now.state == "live" and now.failures:
            return f"live after {now.failures} failed attempt{_s(now.failures)} in {broken}"
        if now.state == "retrying" or (now.state == "connecting" and now.failures):
            line = f"{now.error}; next attempt in {self._retry_s:.1f} s"
            return line if now.failures == 1 else f"{line}, failed {now.failures} times in {broken}"
        return now.state


class _Budget:
    """Some at once, and then one more now and then."""

    def __init__(self, most: int, every_s: float, now_s: float) -> None:
        self._most, self._every_s = most, every_s
        self._left, self._counted_s = float(most), now_s

    def take(self, now_s: float) -> bool:
        self._left = min(self._most, self._left + (now_s - self._counted_s) / self._every_s)
        self._counted_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


def spelled(seconds: float) -> str:
    """A duration for people, in its greatest unit."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _s(count: int) -> str:
    return "" if count == 1 else "s"

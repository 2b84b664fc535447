"""Play a file at its own speed, as if it were a camera.

Knows presentation times; nothing of files or decoding.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from .frame import Frame
from .source import Source

MOST_LATE_S = 1.0
MOST_EARLY_S = 10.0


class Paced:
    """A source whose frames come when they are due; live, so that under overload the newest wins.

    A frame's age counts from when it is due: it would have left the camera then.
    """

    live = True

    def __init__(self, source: Source) -> None:
        self._source = source
        self._closed = threading.Event()

    @property
    def damage(self) -> Sequence[str]:
        return self._source.damage

    def __iter__(self) -> Iterator[Frame]:
        offset_s: float | None = None  # from presentation time to the monotonic clock
        for frame in self._source:
            now = due = time.monotonic()
            if frame.time_s is not None:
                due = now if offset_s is None else frame.time_s + offset_s
                if not -MOST_LATE_S <= due - now <= MOST_EARLY_S:
                    due = now  # the times jump, or reading is too slow: go on from here
                offset_s = due - frame.time_s
                if self._closed.wait(max(0.0, due - now)):
                    return
            late_ns = max(0, time.monotonic_ns() - round(due * 1e9))
            yield replace(frame, arrived_ns=round(due * 1e9), captured_ns=time.time_ns() - late_ns)

    def close(self) -> None:
        self._closed.set()
        self._source.close()

    def __enter__(self) -> Self:
        self._source.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._source.__exit__(kind, error, tb)

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
        begin: tuple[float, float] | None = None
        for frame in self._source:
            if frame.time_s is not None:
                begin = begin or (time.monotonic(), frame.time_s)
                due = begin[0] + frame.time_s - begin[1]
                if self._closed.wait(max(0.0, due - time.monotonic())):
                    return
            yield replace(frame, arrived_ns=time.monotonic_ns(), captured_ns=time.time_ns())

    def close(self) -> None:
        self._closed.set()
        self._source.close()

    def __enter__(self) -> Self:
        self._source.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._source.__exit__(kind, error, tb)

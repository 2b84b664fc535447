"""Play a finite source again and again, as one stream.

Knows frames' numbers and times; nothing of what the source reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from types import TracebackType
from typing import Final, Self

from .errors import SourceError
from .frame import Frame
from .source import Source


class Looped:
    """What `make` makes, played until it is closed; a `daemon.source.Source`.

    make: gives the source anew for each play; called at once, so that SourceError comes from here too.

    `seq` and presentation times go on from play to play: each begins one frame's duration after the last frame of
    the one before it. `epoch` stays as it is. A play without any frame is a SourceError.
    """

    live: Final = False

    def __init__(self, make: Callable[[], Source]) -> None:
        self._make = make
        self._closed = threading.Event()
        self._source = make()

    @property
    def damage(self) -> Sequence[str]:
        """That of the play that goes on: kept for all of them, it would grow for months."""
        return self._source.damage

    def __iter__(self) -> Iterator[Frame]:
        seq, timeline = 0, _Timeline()
        while True:
            played = False
            for frame in self._source:
                played = True
                yield replace(frame, seq=seq, pts=timeline.pts_of(frame))
                seq += 1
            if self._closed.is_set():
                return
            if not played:
                raise SourceError("a source that is looped must have at least one frame, got none")
            timeline.start_again()
            self._renew()
            if self._closed.is_set():
                return

    def _renew(self) -> None:
        self._source.__exit__(None, None, None)
        self._source = self._make().__enter__()
        if self._closed.is_set():  # `close` came before the new source was there to be closed
            self._source.close()

    def close(self) -> None:
        self._closed.set()
        self._source.close()

    def __enter__(self) -> Self:
        self._source.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closed.set()
        self._source.__exit__(kind, error, tb)


class _Timeline:
    """Times of plays one after another. Exact as long as the time base stays; seconds join what has another one."""

    def __init__(self) -> None:
        self._offset = self._end = self._step = Fraction(0)
        self._newest: Fraction | None = None  # of this play
        self._plays = 0

    def pts_of(self, frame: Frame) -> int | None:
        if frame.pts is None:
            return None
        time_s = frame.pts * frame.time_base
        if self._newest is None and self._plays:
            self._offset = self._end - time_s
        pts = round((time_s + self._offset) / frame.time_base)
        now = pts * frame.time_base
        if self._newest is None or now > self._newest:
            if self._newest is not None:
                self._step = now - self._newest
            self._newest = now
            # The last frame lasts as long as the one before it, a single one the shortest time there is.
            self._end = now + (self._step or frame.time_base)
        return pts

    def start_again(self) -> None:
        if self._newest is not None:
            self._newest = None
            self._plays += 1

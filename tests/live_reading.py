"""How tests read live sources, and ports that answer nothing.

Knows marked frames and sockets; no kind of source.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator

from live_clips import read_mark

from daemon.frame import Frame
from daemon.source import Source


def taken(count: int, source: Source) -> list[Frame]:
    """The first `count` frames of a source, which is closed then."""
    with source:
        frames = [frame for _, frame in zip(range(count), source, strict=False)]
    assert len(frames) == count
    return frames


def numbers(frames: Iterable[Frame]) -> list[int]:
    """The numbers that the frames of a clip are marked with."""
    return [read_mark(frame.pixels).number for frame in frames]


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port that does not even answer a connection: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for filler in fillers:
            filler.close()

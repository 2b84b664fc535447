"""Progressive frames from interlaced ones, by FFmpeg's bwdif filter.

Knows decoded frames; nothing of sources.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import Generic, TypeVar

import av
from av.filter import Graph

Note = TypeVar("Note")


class Deinterlacer(Generic[Note]):
    """One frame out for each frame in, in order; those that are progressive come out as they went in.

    Until the first interlaced frame nothing is held back; from then on each frame waits for the next one, which the
    filter needs to see. A note travels with each frame, since the filter keeps only what FFmpeg knows of it.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._shape: tuple[int, int, str] | None = None
        self._notes: deque[Note] = deque()

    def push(self, frame: av.VideoFrame, note: Note) -> list[tuple[av.VideoFrame, Note]]:
        """The frames that are complete now, oldest first."""
        shape = (frame.width, frame.height, frame.format.name)
        done: list[tuple[av.VideoFrame, Note]] = []
        if shape != self._shape:
            done = self.flush()
        if self._graph is None:
            if not frame.interlaced_frame:
                return [*done, (frame, note)]
            self._graph, self._shape = _graph(frame), shape
        self._notes.append(note)
        self._graph.vpush(frame)
        return done + self._pull()

    def flush(self) -> list[tuple[av.VideoFrame, Note]]:
        """The frame that waits for a next one which will not come, if there is one; then begin anew."""
        if self._graph is None:
            return []
        self._graph.vpush(None)
        done = self._pull()
        self._notes.clear()
        self._graph = None
        return done

    def _pull(self) -> list[tuple[av.VideoFrame, Note]]:
        assert self._graph is not None
        done = []
        while self._notes:
            try:
                done.append((self._graph.vpull(), self._notes.popleft()))
            except (av.BlockingIOError, av.EOFError):
                break
        return done


def _graph(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 90_000)
    )
    # One frame for each pair of fields, so that the rate stays; what is progressive is passed on.
    bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    source.link_to(bwdif)
    bwdif.link_to(graph.add("buffersink"))
    graph.configure()
    return graph

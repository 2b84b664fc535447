"""The segments of a video: where a job may begin anew, found without decoding, from the input alone.

Knows packets and their times; nothing of decoders, engines or encoders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av

from .media import best_video, open_media

SEGMENT_S: Final = 10
"""A segment ends at the first key frame that comes at least so many seconds after its beginning."""
PRIME_FRAMES: Final = 8
"""Frames before a segment from which a model with a history takes it."""


@dataclass(frozen=True)
class KeyFrame:
    """Where decoding may begin; times in units of the stream's time base. dts: pts where the file tells none."""

    pts: int
    dts: int


@dataclass(frozen=True)
class Segment:
    """The frames with `start.pts` <= pts < `stop`; None is the file's beginning or end.

    prime: the last key frame from which at least `PRIME_FRAMES` frames come before `start`; None is the beginning.
    packets: of the video, about as many as frames.
    is_cut: `start` is no key frame; decoding begins at `prime`.
    """

    index: int
    start: KeyFrame | None
    stop: int | None
    prime: KeyFrame | None
    packets: int
    is_cut: bool = False


@dataclass(frozen=True)
class Plan:
    """All segments, in order. why_one: what keeps the video from being cut; empty if nothing does."""

    segments: tuple[Segment, ...]
    time_base: Fraction
    why_one: str = ""

    @property
    def packets(self) -> int:
        return sum(segment.packets for segment in self.segments)


def plan_of(path: Path, asked_to_stop: Callable[[], bool] = lambda: False) -> Plan:
    """Read every packet's times once. Raises SourceError, and KeyboardInterrupt when `asked_to_stop`.

    A video is one segment, so that nothing of it is lost, where a part could not be told from the whole exactly:
    without times, or with times that repeat or go back (which are moved on as the frames come), in AVI (whose times
    are made up by counting), and where the file cannot be read to its end.
    """
    with open_media(path) as container:
        video = best_video(container, path)
        time_base = video.time_base or 1 / (video.guessed_rate or Fraction(25))
        cutter = _Cutter(time_base)
        if container.format.name == "avi":
            cutter.why_one = "AVI has no times of presentation"
        try:
            for packet in container.demux(video):
                if asked_to_stop():
                    raise KeyboardInterrupt
                if packet.size:
                    cutter.see(packet.pts, packet.dts, packet.is_keyframe, shown=not packet.is_discard)
        except av.FFmpegError:
            cutter.why_one = cutter.why_one or "the file is damaged"
    return Plan(cutter.segments(), time_base, cutter.why_one)


@dataclass(frozen=True)
class _Cut:
    """packets: those before it."""

    key: KeyFrame
    prime: KeyFrame | None
    packets: int


class _Cutter:
    """Finds the cuts from the packets' times, in their order in the file; holds those of one segment at most."""

    def __init__(self, time_base: Fraction) -> None:
        self._least = SEGMENT_S / time_base
        self.why_one = ""
        self._cuts: list[_Cut] = []
        self._candidate: _Cut | None = None
        self._trailing = False  # a packet that is shown after the candidate was seen
        self._packets = 0
        self._begin: int | None = None  # of the segment
        self._highest: int | None = None  # pts so far
        self._last_dts: int | None = None
        self._times: set[int] = set()  # pts of the segment
        self._keys: deque[tuple[KeyFrame, int]] = deque()  # with the packets before each

    def see(self, pts: int | None, dts: int | None, is_key: bool, *, shown: bool = True) -> None:
        self._packets += shown
        if self.why_one:
            return
        if pts is None:
            self.why_one = "it has frames without times"
            return
        if pts in self._times or (self._cuts and pts < self._cuts[-1].key.pts):
            self.why_one = "its times repeat"
            return
        if dts is not None:  # Matroska has none, and FFmpeg makes up those of later packets only
            if self._last_dts is not None and dts < self._last_dts:
                self.why_one = "its times go back"
                return
            self._last_dts = dts
        if is_key and (self._highest is None or pts > self._highest):
            self._see_key(KeyFrame(pts, pts if dts is None else dts))
        elif self._candidate and pts < self._candidate.key.pts:
            # What is shown before a key frame may follow it at once, as in open groups of pictures, and never later.
            if self._trailing:
                self._candidate = None
        elif self._candidate:
            self._trailing = True
        self._begin = pts if self._begin is None else min(self._begin, pts)
        self._highest = pts if self._highest is None else max(self._highest, pts)
        self._times.add(pts)

    def _see_key(self, key: KeyFrame) -> None:
        """A key frame that is shown after all that came before it in the file."""
        if self._candidate:  # nothing belied it until here
            self._cuts.append(self._candidate)
            self._begin, self._candidate = self._candidate.key.pts, None
            self._times = {pts for pts in self._times if pts >= self._begin}
        if self._begin is not None and key.pts - self._begin >= self._least:
            self._candidate, self._trailing = _Cut(key, self._prime(), self._packets - 1), False
        self._keys.append((key, self._packets - 1))

    def _prime(self) -> KeyFrame | None:
        """The last key frame with enough frames after it; those before it are forgotten."""
        before = self._packets - 1
        while len(self._keys) > 1 and before - self._keys[1][1] >= PRIME_FRAMES:
            self._keys.popleft()
        return self._keys[0][0] if self._keys and before - self._keys[0][1] >= PRIME_FRAMES else None

    def segments(self) -> tuple[Segment, ...]:
        cuts = [] if self.why_one else [*self._cuts, *([self._candidate] if self._candidate else [])]
        begins = [_Cut(KeyFrame(0, 0), None, 0), *cuts]
        ends = [*cuts, None]
        return tuple(
            Segment(
                index=index,
                start=begin.key if index else None,
                stop=end.key.pts if end else None,
                prime=begin.prime,
                packets=(end.packets if end else self._packets) - begin.packets,
            )
            for index, (begin, end) in enumerate(zip(begins, ends, strict=True))
        )

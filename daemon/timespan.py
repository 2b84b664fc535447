"""A part of a video's time: read from what a user writes, and everything of a file cut to it.

Knows times, packets and plans; decodes nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from .errors import SourceError
from .media import best_video, open_media
from .plan import PRIME_FRAMES, KeyFrame, Plan, Segment

_TIME: Final = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)")
_REORDERED: Final = 64  # packets after which none is expected that is shown sooner


@dataclass(frozen=True)
class Timespan:
    """Seconds from a file's beginning, as players count them; None is its end."""

    start_s: Fraction = Fraction(0)
    end_s: Fraction | None = None

    @classmethod
    def parse(cls, text: str) -> Timespan:
        """`START-END`, each in seconds, mm:ss or hh:mm:ss, with fractions, or left out. Raises SourceError."""
        start, separator, end = text.partition("-")
        begins, ends = _seconds(start.strip()), _seconds(end.strip())
        if not separator or (begins is None and ends is None) or "?" in (begins, ends):
            raise SourceError(f"a range must be START-END in seconds or hh:mm:ss, e.g. 00:10-00:20.5, got {text!r}")
        span = cls(Fraction(begins or 0), None if ends is None else Fraction(ends))
        if span.end_s is not None and span.end_s <= span.start_s:
            raise SourceError(f"a range must end after it starts, got {text!r}")
        return span

    def __str__(self) -> str:
        return f"{float(self.start_s)} s to {'the end' if self.end_s is None else f'{float(self.end_s)} s'}"


def _seconds(text: str) -> Fraction | str | None:
    """None for nothing, `?` for what is no time."""
    if not text:
        return None
    match = _TIME.fullmatch(text)
    return int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + Fraction(match[3]) if match else "?"


@dataclass(frozen=True)
class Window:
    """A timespan in a file's own times, in seconds: `begin_s` is that of the first frame in it, and becomes 0."""

    begin_s: Fraction
    end_s: Fraction | None

    def place(self, packet: av.Packet[Any]) -> bool:
        """Move a packet to its time in the result; False if it is outside.

        Sound that begins before the window is left out; a subtitle is cut where it is longer.
        """
        stream, stamp = packet.stream, packet.pts if packet.pts is not None else packet.dts
        if stream.type == "video" and stream.disposition & Disposition.attached_pic:
            packet.pts = packet.dts = 0
            return True
        if stamp is None:
            return False
        begin = self.begin_s / packet.time_base
        end = None if self.end_s is None else self.end_s / packet.time_base
        if stream.type == "subtitle" and packet.duration:
            first, last = max(Fraction(stamp), begin), Fraction(stamp + packet.duration)
            last = last if end is None else min(last, end)
            if first >= last:
                return False
            packet.pts = packet.dts = round(first - begin)
            packet.duration = round(last - first)
            return True
        if stamp < begin or (end is not None and stamp >= end):
            return False
        packet.pts = None if packet.pts is None else packet.pts - round(begin)
        packet.dts = None if packet.dts is None else packet.dts - round(begin)
        return True

    def chapters(self, chapters: Iterable[Any]) -> list[Any]:
        """Those that are in the window at least in part, cut to it."""
        cut = []
        for chapter in chapters:
            unit = chapter["time_base"]
            end = chapter["end"] * unit if self.end_s is None else min(chapter["end"] * unit, self.end_s)
            start = max(chapter["start"] * unit, self.begin_s)
            if start < end:
                moved = {"start": round((start - self.begin_s) / unit), "end": round((end - self.begin_s) / unit)}
                cut.append({**chapter, **moved})
        return cut


def window_of(path: Path, span: Timespan) -> Window:
    """Where `span` is in a video. Raises SourceError if no frame is there, or the video has no times."""
    with open_media(path) as container:
        video = best_video(container, path)
        origin_s = Fraction(container.start_time or 0, av.time_base)
        end_s = None if span.end_s is None else origin_s + span.end_s
        begin_s = _first_from(container, video, path, origin_s + span.start_s)
    if begin_s is None or (end_s is not None and begin_s >= end_s):
        raise SourceError(f"{path}: a range must have at least one frame, got none from {span}")
    return Window(begin_s, end_s)


def _first_from(container: InputContainer, video: VideoStream, path: Path, start_s: Fraction) -> Fraction | None:
    """The time of the first frame that is shown at `start_s` or later."""
    first, after, timed = None, 0, False
    for packet in _packets_from(container, video, start_s):
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None or packet.is_discard:
            continue
        timed = True
        time_s = stamp * packet.time_base
        if time_s >= start_s and (first is None or time_s < first):
            first, after = time_s, 0
        after += first is not None
        if after > _REORDERED:
            break
    if not timed:
        raise SourceError(f"{path}: a range must be of a video with times, got one without")
    return first


def _packets_from(container: InputContainer, video: VideoStream, start_s: Fraction) -> Iterator[av.Packet[Any]]:
    try:
        if video.time_base:
            container.seek(math.floor(start_s / video.time_base), stream=video)
    except av.FFmpegError:  # what cannot seek begins at its beginning
        pass
    try:
        yield from (packet for packet in container.demux(video) if packet.size)
    except av.FFmpegError:  # damaged: there is no more
        return


def cut(plan: Plan, window: Window, rate: Fraction) -> Plan:
    """The segments of `plan` that are in the window, the first and last of them cut; with their numbers.

    rate: frames a second, about.
    """
    begin = math.ceil(window.begin_s / plan.time_base)
    end = None if window.end_s is None else math.ceil(window.end_s / plan.time_base)
    kept = []
    for segment in plan.segments:
        start, stop = segment.start, segment.stop
        if (stop is not None and stop <= begin) or (end is not None and start and start.pts >= end):
            continue
        if start is None or start.pts < begin:
            # Frames between, by which a history is the same; else those of the segment before are needed, too.
            between = 0 if start is None else (begin - start.pts) * plan.time_base * rate
            prime = start if between >= 2 * PRIME_FRAMES else segment.prime
            segment = replace(segment, start=KeyFrame(begin, begin), prime=prime, is_cut=True)
        if end is not None and (stop is None or stop > end):
            segment = replace(segment, stop=end)
        kept.append(replace(segment, packets=_packets(segment, plan.time_base * rate)))
    return replace(plan, segments=tuple(kept))


def _packets(segment: Segment, frames_a_unit: Fraction) -> int:
    if segment.start is None or segment.stop is None:
        return segment.packets
    return min(segment.packets, max(1, round((segment.stop - segment.start.pts) * frames_a_unit)))

"""One segment of a video, encoded: frames in, a file of packets out.

Knows encoders; nothing of containers, nor of what the neighbouring segments are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from .compare import compared
from .errors import SinkError
from .frame import Frame, Pixels
from .packet_file import PacketFileWriter
from .part_file import unwritable
from .planes import with_change
from .video_setup import VideoSetup

_JUMP_BACK_S: Final = 1.0


class SegmentWriter:
    """Encodes restored frames into `path`; a `daemon.sink.Sink` of frames whose `origin` is a `daemon.planes.Original`.

    target: the file that the segment is for, for messages.
    start, stop: frames outside, in units of the time base, are not written: those before only give the model its
        history.
    regular: the file's own times are known to rise: where a frame's does not, the decoder gave it out of order, as
        they do beside damage. Else a clock may have begun anew.

    Nothing is at `path` until `commit`, which comes after `close`.
    """

    def __init__(
        self,
        path: Path,
        target: Path,
        video: VideoSetup,
        *,
        start: int | None = None,
        stop: int | None = None,
        regular: bool = False,
        on_frame: Callable[[], None] | None = None,
    ) -> None:
        self.notes: list[str] = []
        """One line for each thing that the segment does not keep."""
        self.frames = 0
        """Frames written so far; `on_frame` is called after each, by the thread that sends."""
        self._target, self._video, self._on_frame = target, video, on_frame
        self._start, self._stop = start, stop
        self._encoder: VideoCodecContext | None = None
        self._timeline = _Timeline(regular)
        self._complete = self._closed = self._abandoned = False
        try:
            self._packets = PacketFileWriter(path)
        except OSError as error:
            raise unwritable(target, error) from error

    def lend(self, frame: Frame) -> Pixels:
        return np.empty_like(frame.pixels)

    def send(self, frame: Frame) -> None:
        if self._abandoned or self._closed:
            return
        if self._start is not None and frame.pts is not None and frame.pts < self._start:
            return
        try:
            self._write(frame)
        except (av.FFmpegError, ValueError, OSError) as error:
            self._abandoned = True
            raise unwritable(self._target, error) from error
        self.frames += 1
        if self._on_frame:
            self._on_frame()

    def close(self) -> None:
        """Write what the encoder still holds. Raises SinkError."""
        if self._closed:
            return
        self._closed = True
        if self._abandoned:
            return
        try:
            if self._encoder:
                self._keep(self._encoder.encode(None))
            self._complete = True
        except (av.FFmpegError, ValueError, OSError) as error:
            raise unwritable(self._target, error) from error

    def commit(self, damage: list[str], warnings: list[str]) -> None:
        """Give the closed segment its name, with what is known of its source. Raises SinkError."""
        if not self._complete:
            raise SinkError(f"{self._target}: a segment was not written to its end")
        header = (self._encoder.extradata if self._encoder else None) or b""
        record = SegmentRecord(self.frames, header.hex(), self.notes, damage, warnings)
        try:
            self._packets.commit(record.as_json())
        except OSError as error:
            raise unwritable(self._target, error) from error

    def abandon(self) -> None:
        """Write no more, whatever is still sent. Any thread may call this."""
        self._abandoned = True

    def discard(self) -> None:
        """Leave nothing of what was not committed."""
        self._packets.discard()

    def _write(self, frame: Frame) -> None:
        encoder = self._encoder = self._encoder or self._video.open_encoder()
        if (frame.width, frame.height) != self._video.size:
            self._note("the frame size changes: all are scaled to the first, {}x{}".format(*self._video.size))
        setup = self._video.setup
        how = (setup.pix_fmt, setup.colour, self._video.size)
        if self._video.comparison:
            picture = compared(self._video.comparison, frame.origin, frame.pixels, *how, self._video.rotation)
        else:
            picture = with_change(frame.origin, frame.pixels, *how)
        picture.time_base = frame.time_base
        picture.pts, moved = self._timeline.place(frame.pts, frame.time_base, self._video.rate)
        if moved:
            self._note("times that go back are moved on")
        if self._stop is not None and picture.pts >= self._stop:  # which the next segment's frame has
            self._note("frames out of order at the end of a segment are left out")
            return
        self._keep(encoder.encode(picture))

    def _keep(self, packets: list[av.Packet[Any]]) -> None:
        for packet in packets:
            self._packets.write(packet)

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


@dataclass(frozen=True)
class SegmentRecord:
    """What is known of a finished segment.

    header: the encoder's extradata, in hexadecimal; empty where no frame was encoded.
    damage, warnings, notes: one line for each thing that could not be read, should be known, was not kept.
    """

    frames: int
    header: str
    notes: list[str]
    damage: list[str]
    warnings: list[str]

    def as_json(self) -> dict[str, Any]:
        return dict(self.__dict__)


class _Timeline:
    """Puts frames in rising order: a muxer takes nothing else."""

    def __init__(self, regular: bool) -> None:
        self._regular = regular
        self._last: int | None = None
        self._shift = 0

    def place(self, pts: int | None, time_base: Fraction, rate: Fraction) -> tuple[int, bool]:
        """The pts to write, and whether it had to be moved."""
        step = max(1, round(1 / (rate * time_base)))
        if pts is None:
            pts = 0 if self._last is None else self._last + step - self._shift
        pts += self._shift
        if self._last is None or pts > self._last:
            self._last = pts
            return pts, False
        if (
            not self._regular and (self._last - pts) * time_base >= _JUMP_BACK_S
        ):  # a clock that began anew: move all that follows
            self._shift += self._last + step - pts
            self._last += step
        else:
            self._last += 1
        return self._last, True

"""A video file with restored frames in place of its source's, and everything else of the source kept.

Knows containers and packets; nothing of where frames come from.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.stream import Stream
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .colour import from_rgb
from .encoding import EncoderSetup, Encoding, encoder_for, setup_for
from .errors import SinkError
from .frame import Frame
from .media import best_video, open_media, reason
from .part_file import PartFile
from .stream_copy import StreamCopy

_FORMATS: Final = {".m4v": "mp4", ".qt": "mov"}  # where FFmpeg's guess by the name is not what is meant
_MP4: Final = ("mp4", "mov", "ipod")
_ABOUT_THE_OLD_ENCODING: Final = (
    "encoder",
    "duration",
    "vendor_id",
    "handler_name",
    "bps",
    "number_of_",
    "_statistics_",
)
_JUMP_BACK_S: Final = 1.0


class FileWriter:
    """Writes `target` from restored frames of `source`; a `daemon.sink.Sink`.

    Audio, subtitles, attachments, covers and further videos are copied packet by packet; chapters, tags,
    dispositions, rotation, aspect ratio, colour and times are kept. `notes` has one line for each thing that
    cannot be.

    Nothing is at `target` until `commit`, which comes after `close`; leaving the `with` block without it leaves
    nothing behind.
    """

    def __init__(
        self,
        source: Path,
        target: Path,
        encoding: Encoding | None = None,
        *,
        overwrite: bool = False,
        on_frame: Callable[[int], None] | None = None,
    ) -> None:
        self.target = target
        self.notes: list[str] = []
        self.frames = 0
        """Frames written so far; `on_frame` is told after each, by the thread that sends."""
        self._encoding = encoding or Encoding()
        self._on_frame = on_frame
        self._setup: EncoderSetup | None = None
        self._size = (0, 0)  # (W, H) of the first frame
        self._timeline = _Timeline()
        self._complete = self._closed = self._abandoned = False
        self._input = open_media(source)
        try:
            self._part = PartFile(target, source=source, overwrite=overwrite)
            try:
                self._output = self._open_output()
                self._add_streams(best_video(self._input, source))
            except BaseException:
                self._part.discard()
                raise
        except BaseException:
            self._input.close()
            raise

    def lend(self, frame: Frame) -> NDArray[np.uint8]:
        return np.empty(frame.pixels.shape, np.uint8)

    def send(self, frame: Frame) -> None:
        if self._abandoned or self._closed:
            return
        try:
            self._write(frame)
        except (av.FFmpegError, ValueError) as error:
            self._abandoned = True
            raise self._unwritable(error) from error
        self.frames += 1
        if self._on_frame:
            self._on_frame(self.frames)

    def close(self) -> None:
        """Write what the encoder still holds, and the rest of the source's other streams. Raises SinkError."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._setup and not self._abandoned:
                self._mux_video(self._video.encode(None))
                self._copies.up_to(None)
                self._output.close()
                self._complete = True
        except (av.FFmpegError, ValueError) as error:
            raise self._unwritable(error) from error
        finally:
            with suppress(av.FFmpegError, ValueError):  # what was abandoned may well be unwritable
                self._output.close()
            self._input.close()

    def commit(self) -> None:
        """Give the closed file its name. Raises SinkError if it is not complete."""
        if not self._complete:
            raise SinkError(f"{self.target}: a video must have at least one frame, got {self.frames}")
        self._part.commit()

    def abandon(self) -> None:
        """Write no more, whatever is still sent. Any thread may call this."""
        self._abandoned = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.abandon()
        try:
            self.close()
        finally:
            self._part.discard()

    def _open_output(self) -> OutputContainer:
        name = _FORMATS.get(self.target.suffix.lower())
        # FFmpeg's option to keep all tags of MP4, use_metadata_tags, would lose the cover picture.
        options = {"movflags": "+faststart"} if self.target.suffix.lower() in (".mp4", ".m4v", ".mov", ".qt") else {}
        try:
            return av.open(f"file:{self._part.path.absolute()}", "w", format=name, container_options=options)
        except (av.FFmpegError, ValueError) as error:
            known = "a suffix of a video format, e.g. .mp4 or .mkv"
            raise SinkError(f"{self.target}: the name must have {known}, got {self.target.suffix!r}") from error

    def _add_streams(self, restored: VideoStream) -> None:
        """The same streams in the same order. The encoder is set up by its first frame: headers may lie."""
        encoder = encoder_for(self._encoding, restored.codec_context.name)
        timecode = None
        self._copies = StreamCopy(self._input, self._output, self.notes)
        for stream in self._input.streams:
            out: Stream
            if stream.index == restored.index:
                out = self._video = self._add_video(encoder, restored)
            elif stream.type in ("data", "unknown"):
                # Tracks of timecodes and chapters are made anew from tags; others break the header of MP4.
                timecode = timecode or stream.metadata.get("timecode")
                if "timecode" not in stream.metadata and stream.metadata.get("handler_name") != "SubtitleHandler":
                    self.notes.append(f"stream {stream.index} (data) is left out")
                continue
            elif (copy := self._copies.add(stream)) is not None:
                out = copy
            else:
                continue
            out.disposition = stream.disposition
            for key, value in stream.metadata.items():
                if out is not self._video or not key.lower().startswith(_ABOUT_THE_OLD_ENCODING):
                    out.metadata[key] = value
        if timecode and self._output.format.name in _MP4:
            self._video.metadata.setdefault("timecode", timecode)
        self._output.metadata.update(self._input.metadata)
        if chapters := self._input.chapters():
            self._output.set_chapters(chapters)

    def _add_video(self, encoder: str, restored: VideoStream) -> VideoStream:
        rate = restored.guessed_rate or restored.average_rate or 25  # steers only the encoder's rate control
        try:
            video = cast(VideoStream, self._output.add_stream(encoder, rate=rate))
        except ValueError as error:
            container = self._output.format.name
            raise SinkError(f"{self.target}: {container} cannot hold what {encoder} makes; .mkv holds any") from error
        if restored.sample_aspect_ratio:
            video.sample_aspect_ratio = restored.sample_aspect_ratio
        return video

    def _write(self, frame: Frame) -> None:
        if self._setup is None:
            self._setup, self._size = self._set_up(frame), (frame.width, frame.height)
        pixels = cast("NDArray[np.uint8]", frame.pixels)
        origin = _origin_of(frame)
        if (frame.width, frame.height) != self._size:
            self._note("the frame size changes: all are scaled to the first, {}x{}".format(*self._size))
            pixels = np.asarray(cv2.resize(pixels, self._size, interpolation=cv2.INTER_CUBIC), np.uint8)
            origin = None
        picture = from_rgb(pixels, self._setup.pix_fmt, self._setup.colour, origin)
        picture.time_base = frame.time_base
        picture.pts, moved = self._timeline.place(frame.pts, frame.time_base, self._video.codec_context.framerate)
        if moved:
            self._note("times that go back are moved on")
        self._mux_video(self._video.encode(picture))

    def _set_up(self, frame: Frame) -> EncoderSetup:
        pixels = cast("NDArray[np.uint8]", frame.pixels)
        origin = _origin_of(frame) or from_rgb(pixels, "yuv420p", frame.colour)
        video, context = self._video, self._video.codec_context
        setup = setup_for(self._encoding, context.name, self._output.format.name, origin)
        video.width, video.height, video.pix_fmt = frame.width, frame.height, setup.pix_fmt
        video.time_base = context.time_base = frame.time_base
        context.color_primaries, context.color_trc = setup.colour.primaries, setup.colour.transfer
        context.colorspace = setup.colour.matrix
        context.color_range = setup.range_tag
        context.options = setup.options
        if setup.codec_tag:
            context.codec_tag = setup.codec_tag
        if frame.rotation:
            video.set_display_rotation(frame.rotation)
        self.notes.extend(setup.notes)
        return setup

    def _mux_video(self, packets: list[av.Packet[Any]]) -> None:
        for packet in packets:
            if packet.dts is not None:
                self._copies.up_to(packet.dts * packet.time_base)
            self._output.mux_one(packet)

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def _unwritable(self, error: av.FFmpegError | ValueError) -> SinkError:
        why = reason(error) if isinstance(error, av.FFmpegError) else str(error)
        return SinkError(f"{self.target}: cannot be written ({why})")


def _origin_of(frame: Frame) -> av.VideoFrame | None:
    """The decoder's frame; None for a frame that no decoder gave in this size."""
    origin = frame.origin
    same = isinstance(origin, av.VideoFrame) and (origin.width, origin.height) == (frame.width, frame.height)
    return origin if same else None


class _Timeline:
    """Puts frames in rising order: a muxer takes nothing else."""

    def __init__(self) -> None:
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
        if (self._last - pts) * time_base >= _JUMP_BACK_S:  # a clock that began anew: move all that follows
            self._shift += self._last + step - pts
            self._last += step
        else:
            self._last += 1
        return self._last, True

"""A video file put together: the packets of restored segments, and everything else of the source as it is.

Knows containers and packets; nothing of how the segments came to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import av
from av.stream import Stream
from av.video.stream import VideoStream

from .errors import SinkError
from .media import best_video, open_media
from .packet_file import PacketFile
from .part_file import unwritable
from .segment_writer import SegmentRecord
from .stream_copy import StreamCopy
from .timespan import Window
from .video_setup import VideoSetup

_MP4: Final = ("mp4", "mov", "ipod")
_ABOUT_THE_OLD_ENCODING: Final = (
    "encoder",
    "duration",
    "vendor_id",
    "handler_name",
    "alpha_mode",  # said by the container itself where it is so
    "bps",
    "number_of_",
    "_statistics_",
)


class Assembly:
    """Writes `path` for what shall be `target`: the streams of `source` in their order, with another video.

    Audio, subtitles, attachments, covers and further videos are copied packet by packet; chapters, tags,
    dispositions, rotation, aspect ratio, colour and times are kept. `notes` has one line for each thing that
    cannot be.

    window: the part of the source that the segments are of; None is all of it. It begins at 0 in the result.

    The header is written at once, so that what the container cannot hold is known by a SinkError from here.
    """

    def __init__(self, source: Path, path: Path, target: Path, video: VideoSetup, window: Window | None = None) -> None:
        self.notes: list[str] = [*video.setup.notes]
        self._target, self._setup, self._window = target, video, window
        self._offset = round(window.begin_s / video.time_base) if window else 0
        self._last_dts: int | None = None
        self._input = open_media(source)
        try:
            # FFmpeg's option to keep all tags of MP4, use_metadata_tags, would lose the cover picture.
            options = {"movflags": "+faststart"} if video.container in _MP4 else {}
            name = f"file:{path.absolute()}"
            self._output = av.open(name, "w", format=video.container, container_options=options)
            try:
                self._add_streams(best_video(self._input, source))
                self._output.start_encoding()
            except (av.FFmpegError, ValueError) as error:
                self._drop()
                raise unwritable(target, error) from error
            except BaseException:
                self._drop()
                raise
        except BaseException:
            self._input.close()
            raise
        self._header = self._video.codec_context.extradata or b""

    def add(self, number: int, segment: PacketFile, asked_to_stop: Callable[[], bool] = lambda: False) -> None:
        """Write a segment, and of the other streams what belongs beside it. Raises SinkError.

        KeyboardInterrupt when `asked_to_stop`.
        """
        record = SegmentRecord(**segment.record)
        if record.header and bytes.fromhex(record.header) != self._header:
            got = f"another from {self._setup.encoder} for segment {number}"
            raise SinkError(f"{self._target}: all segments must have one header, got {got}")
        try:
            for packet in segment:
                if asked_to_stop():
                    raise KeyboardInterrupt
                self._write(packet)
        except (av.FFmpegError, ValueError, OSError) as error:
            raise unwritable(self._target, error) from error

    def close(self) -> None:
        """Write the rest of the other streams, and end the file. Raises SinkError."""
        try:
            self._copies.up_to(None)
            self._output.close()
        except (av.FFmpegError, ValueError, OSError) as error:
            raise unwritable(self._target, error) from error
        finally:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._drop()

    def _drop(self) -> None:
        with suppress(av.FFmpegError, ValueError, OSError):  # what is given up may well be unwritable
            self._output.close()
        self._input.close()

    def _add_streams(self, restored: VideoStream) -> None:
        """The same streams in the same order."""
        timecode = None
        self._copies = StreamCopy(self._input, self._output, self.notes, self._window)
        for stream in self._input.streams:
            out: Stream
            if stream.index == restored.index:
                out = self._video = self._add_video()
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
                if stream.index != restored.index or not key.lower().startswith(_ABOUT_THE_OLD_ENCODING):
                    out.metadata[key] = value
        if timecode and self._setup.container in _MP4:
            self._video.metadata.setdefault("timecode", timecode)
        self._output.metadata.update(self._input.metadata)
        if chapters := self._input.chapters():
            self._output.set_chapters(self._window.chapters(chapters) if self._window else chapters)

    def _add_video(self) -> VideoStream:
        """The encoder of this stream is opened for the header, and never encodes."""
        setup = self._setup
        try:
            video = cast(VideoStream, self._output.add_stream(setup.encoder, rate=setup.rate))
        except ValueError as error:
            rule = f"{setup.container} cannot hold what {setup.encoder} makes; .mkv holds any"
            raise SinkError(f"{self._target}: {rule}") from error
        setup.configure(video.codec_context)
        video.time_base = setup.time_base
        if setup.rotation:
            video.set_display_rotation(setup.rotation)
        return video

    def _write(self, packet: av.Packet[Any]) -> None:
        packet.time_base = self._setup.time_base
        packet.stream = self._video
        packet.pts = None if packet.pts is None else packet.pts - self._offset
        if packet.dts is not None:
            packet.dts = self._last_dts = rising(packet.dts - self._offset, self._last_dts)
            self._copies.up_to(packet.dts * self._setup.time_base)
        self._output.mux_one(packet)


def rising(dts: int, last: int | None) -> int:
    """A time of decoding after `last`, moved by the smallest amount.

    An encoder that was opened anew for a segment may give its first frames times before the last of the segment
    before, by up to its delay of n frames. Moved so they are never above their pts: packet k of a whole stream could
    have the pts of frame k - n in the order of presentation, which is above `last`, rises, and is no higher than the
    packet's own pts; and the smallest that rises is no higher than that.
    """
    return dts if last is None else max(dts, last + 1)


def together(lines: Iterable[str]) -> list[str]:
    """Each line once, in the order of their first coming."""
    return list(dict.fromkeys(lines))

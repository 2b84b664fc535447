"""Frames of a video file, with exact times, and a list of what of the file could not be read.

Knows files on disk; nothing of what becomes of the frames.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import av
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from .colour import colour_of, depth_of, to_deep_rgb, to_rgb
from .errors import SourceError
from .frame import Frame, Pixels
from .media import best_video, cut_off, duration_s, open_media, reason
from .plan import KeyFrame
from .planes import Original
from .video_packets import VideoPackets

MAX_PIXELS: Final = 8192 * 8192
_MOST_DAMAGE_LINES: Final = 20
_REORDER_S: Final = 5  # beyond which no frame is expected to come late
_SEEK_BACK_S: Final = 5  # beyond a key frame, where the container cannot seek to it exactly, as in MPEG-TS

_WITH_ALPHA: Final = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

Threads = Literal["auto", "slice"]


class FileSource:
    """The frames of a file's best video stream, in order of presentation; a `daemon.source.Source`.

    path: the file; opened at once, so that SourceError comes from here.
    stream: the name that the frames carry.
    threads: `slice` loses no frame beside a damaged one; `auto` does, but decodes several frames at once.
    start, stop: only frames with start <= pts < stop, in units of the stream's time base.
    key: decode from exactly this key frame on, which comes at `start` or before it, and so the same wherever the
        container's index leads; `daemon.plan` finds it.
    prime: so many frames before `start` are yielded too, if there are as many after `key`, or the beginning.
    deep: pixels are uint16 where the video has more than 8 bits.

    What is damaged does not end the iteration: it is passed over, and described in `damage`. `seq` counts the
    frames that are yielded from 0.
    """

    live: Final = False

    def __init__(
        self,
        path: Path,
        *,
        stream: str = "file",
        threads: Threads = "slice",
        start: int | None = None,
        stop: int | None = None,
        key: KeyFrame | None = None,
        prime: int = 0,
        deep: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.path, self.name = path, stream
        self.damage: list[str] = []
        """One line for each thing that could not be read; complete when the iteration is."""
        self.warnings: list[str] = []
        """One line for each thing about the frames that the reader should know."""
        self._threads, self._start, self._stop, self._max_pixels = threads, start, stop, max_pixels
        self._key, self._prime, self._deep = key, prime, deep
        self.depth = 8
        """Bits a colour of the frames that were yielded."""
        self._closed = False
        self._open()

    def _open(self) -> None:
        self._container = open_media(self.path)
        try:
            self._video = best_video(self._container, self.path)
            if self._video.codec_context is None:
                raise SourceError(f"{self.path}: the video must be of a known codec")
            self._check_size(self._video.width, self._video.height)
        except SourceError:
            self._container.close()
            raise
        self._decoder = _decoder_for(self._video)
        self._decoder.thread_type = "SLICE" if self._threads == "slice" else "AUTO"
        self._packets = VideoPackets(self._container, self._video, self._stop, self.damage)
        if self._closed:  # by another thread, while it is opened again
            self._packets.close()
        self._damaged_packets = self._damaged_frames = 0
        # Taken now, because PyAV crashes when asked after the container was closed.
        self.rate: Fraction = self._video.guessed_rate or self._video.average_rate or Fraction(25)
        """Frames a second, guessed: 25 where the file gives no hint."""
        self.time_base: Fraction = self._video.time_base or 1 / self.rate
        self.frames_expected: int | None = self._expected()
        """About how many frames will come; None if the file does not tell."""

    def _expected(self) -> int | None:
        if self._start is not None and self._stop is not None:
            return round((self._stop - self._start) * self.time_base * self.rate)
        if self._start is not None or self._stop is not None:
            return None
        if "mp4" in self._container.format.name and len(self._video.index_entries):
            return len(self._video.index_entries)  # unlike `frames`, less what an edit list cuts off
        if self._video.frames:
            return self._video.frames
        seconds = duration_s(self._container)
        return None if seconds is None else round(seconds * self.rate)

    def __iter__(self) -> Iterator[Frame]:
        seq = 0
        for decoded in self._in_range():
            if self._closed:
                return
            frame = decoded.frame
            began = time.monotonic_ns()
            pixels = self._pixels_of(frame)
            if not seq:
                self._look_at(frame)
            arrived = time.monotonic_ns()
            yield Frame(
                stream=self.name,
                seq=seq,
                pts=decoded.pts,
                time_base=self.time_base,
                captured_ns=time.time_ns(),
                arrived_ns=arrived,
                pixels=pixels,
                colour=colour_of(frame),
                sample_aspect_ratio=self._video.sample_aspect_ratio or Fraction(1),
                rotation=frame.rotation,
                spent_ns={"decode": decoded.decode_ns, "convert": arrived - began},
                origin=Original(frame, pixels),
            )
            seq += 1
        if not seq and not self._closed and self._start is None and self._stop is None:
            raise SourceError(
                f"{self.path}: must have at least one frame, got none"
                + "".join(f" ({line})" for line in self.damage[:1])
            )

    def close(self) -> None:
        """End the iteration before the next packet. The file stays open until the end of `with`."""
        self._closed = True
        self._packets.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        self._container.close()

    def _in_range(self) -> Iterator[_Decoded]:
        before: deque[_Decoded] = deque(maxlen=self._prime)
        for item in self._decoded_from_start():
            if self._stop is not None and item.pts >= self._stop:
                if (item.pts - self._stop) * self.time_base > _REORDER_S:
                    break
                continue  # beside damage, decoders give frames out of order: more may come that belong here
            self._damaged_frames += item.frame.is_corrupt and self._counts(item.pts)
            if self._start is not None and item.pts < self._start:
                before.append(item)
                continue
            while before:
                yield before.popleft()
            yield item
        self._sum_up()

    def _decoded_from_start(self) -> Iterator[_Decoded]:
        """Everything that decodes, from a frame on that comes at the wanted place or before it."""
        for seek_to in self._seeks():
            decoded = self._decoded(seek_to)
            first = next(decoded, None)
            if seek_to is None or self._is_soon_enough(first):
                return chain((first,) if first else (), decoded)
            # The container could not seek to before the place, or its key frame is damaged.
            decoded.close()
            self._reopen()
        raise AssertionError("the last place to begin at is the beginning")

    def _seeks(self) -> Iterator[int | None]:
        """Where to seek to, the best first; the last is the beginning, from where the rest is passed over."""
        if self._key is not None:
            yield from (self._key.dts, self._key.dts - round(_SEEK_BACK_S / self.time_base))
        elif self._start is not None and not self._prime:
            yield self._start
        yield None

    def _is_soon_enough(self, first: _Decoded | None) -> bool:
        if first is None or first.made:
            return False
        return first.pts == self._key.pts if self._key else first.pts <= (self._start or 0)

    def _reopen(self) -> None:
        self._container.close()
        self.damage.clear()
        self._open()

    def _decoded(self, seek_to: int | None = None) -> Generator[_Decoded]:
        """Everything that decodes."""
        clock = _Clock(1 / self.rate / self.time_base, trust_pts=self._container.format.name != "avi")
        self._damaged_packets = self._damaged_frames = 0
        key = self._key if seek_to is not None else None
        if seek_to is not None:
            with suppress(av.FFmpegError):  # what cannot seek stays at the start, which serves too
                self._container.seek(seek_to, stream=self._video)
        spent_ns = 0
        for packet in self._packets.read(key):
            began = time.monotonic_ns()
            frames: list[av.VideoFrame] = []
            try:
                frames = self._decoder.decode(packet)
            except av.FFmpegError as error:
                self._note_damaged(packet, error)
            spent_ns += time.monotonic_ns() - began
            for frame in frames:
                self._check_size(frame.width, frame.height)
                pts, made = clock.pts_of(frame)
                if key and pts < key.pts:  # needs what came before the key frame
                    continue
                yield _Decoded(frame, pts, made, spent_ns)
                spent_ns = 0

    def _counts(self, pts: int | None) -> bool:
        """Whether damage at `pts` belongs to the range, and not to what is read before and after it."""
        if pts is None:
            return True
        return (self._start is None or pts >= self._start) and (self._stop is None or pts < self._stop)

    def _note_damaged(self, packet: av.Packet[VideoStream] | None, error: av.FFmpegError) -> None:
        stamp = None if packet is None else packet.pts if packet.pts is not None else packet.dts
        if not self._counts(stamp):
            return
        self._damaged_packets += 1
        if self._damaged_packets <= _MOST_DAMAGE_LINES:
            self.damage.append(f"{_place(packet)} did not decode ({reason(error)})")

    def _sum_up(self) -> None:
        """Complete `damage`."""
        if self._damaged_packets > _MOST_DAMAGE_LINES:
            self.damage.append(f"{self._damaged_packets - _MOST_DAMAGE_LINES} more packets did not decode")
        if self._damaged_frames:
            self.damage.append(f"{self._damaged_frames} frames are damaged: the decoder made up what was missing")
        if self._stop is None and not self._closed:
            line = cut_off(self._container, self._video, self.path, self._packets.end_s)
            if line:
                self.damage.append(line)

    def _pixels_of(self, frame: av.VideoFrame) -> Pixels:
        depth = depth_of(frame.format.name)
        self.depth = max(self.depth, depth)
        return to_deep_rgb(frame) if self._deep and depth > 8 else to_rgb(frame)

    def _look_at(self, frame: av.VideoFrame) -> None:
        if self.depth > 8 and not self._deep:
            self.warnings.append(f"restored at 8 bits: the video has {self.depth}")
        if frame.interlaced_frame:
            self.warnings.append("the video is interlaced: its frames are restored as they are")

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise SourceError(f"{self.path}: a frame must have at most {self._max_pixels} pixels, got {width}x{height}")


@dataclass(frozen=True)
class _Decoded:
    """made: the file has no time for the frame, `pts` was counted."""

    frame: av.VideoFrame
    pts: int
    made: bool
    decode_ns: int


class _Clock:
    """Gives every frame a time: its own, or that of its packet, or one step after the frame before.

    trust_pts: AVI stores packets by time of decoding only; what FFmpeg makes of it for B-frames is out of order.
    """

    def __init__(self, step: Fraction, trust_pts: bool) -> None:
        self._step, self._trust_pts = step, trust_pts
        self._next = Fraction(0)

    def pts_of(self, frame: av.VideoFrame) -> tuple[int, bool]:
        """The frame's time, and whether it was counted."""
        pts = frame.pts if self._trust_pts and frame.pts is not None else frame.dts
        if pts is not None:
            self._next = pts + self._step
            return pts, False
        pts = round(self._next)
        self._next += self._step  # not of the rounded one: at 24000/1001 that would drift
        return pts, True


def _decoder_for(video: VideoStream) -> VideoCodecContext:
    """The stream's own decoder, or for VP8 and VP9 with transparency the one that reads it."""
    tags = {key.lower(): value for key, value in video.metadata.items()}
    if tags.get("alpha_mode") != "1" or video.codec_context.name not in _WITH_ALPHA:
        return video.codec_context
    decoder = av.CodecContext.create(_WITH_ALPHA[video.codec_context.name], "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.extradata = video.codec_context.extradata
    return decoder


def _place(packet: av.Packet[VideoStream] | None) -> str:
    if packet is None:
        return "the last packet"
    stamp = packet.pts if packet.pts is not None else packet.dts
    return "a packet" if stamp is None else f"the packet at {float(stamp * packet.time_base):.3f} s"

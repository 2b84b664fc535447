"""A contact sheet of a video: some moments before and after they were restored, beside each other.

Knows sources, the pipeline and pictures; writes nothing but the sheet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from engine.protocol import Engine

from .errors import SinkError, SourceError
from .file_source import FileSource
from .frame import Frame, Pixels
from .media import best_video, open_media
from .part_file import PartFile, check_target, unwritable
from .pictures import SUFFIXES as PICTURES
from .pictures import PictureSource
from .pipeline import Pipeline
from .plan import PRIME_FRAMES, plan_of
from .segment_run import STOP_POLL_S
from .sharpness import blur_sigma
from .strength import StrengthSetting
from .timespan import Timespan

SUFFIXES: Final = (".png", ".jpg", ".jpeg")
CELL_PX: Final = 960
"""A picture of the sheet is no wider and no higher: larger frames are made smaller."""
_GAP_PX: Final = 8
_TEXT_PX: Final = 28
_JPEG_QUALITY: Final = 95
_TURNS: Final = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}

Image = NDArray[np.uint8]
"""BGR, (H, W, 3)."""


def preview(
    source: Path,
    target: Path,
    moments: int,
    engine: Engine,
    *,
    strength: StrengthSetting = "auto",
    span: Timespan | None = None,
    overwrite: bool = False,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Write the sheet, a PNG or JPEG; the times of its moments, in seconds from the beginning of `source`.

    moments: in the middle of so many equal parts of the video; fewer where it has fewer frames. A picture has one.
    span: the part of the video that they are spread over; None is all of it.

    Each is reached by seeking; a model with a history is given the `PRIME_FRAMES` frames before it. Raises SourceError,
    SinkError, what the engine raises, and KeyboardInterrupt when `asked_to_stop`.
    """
    if target.suffix.lower() not in SUFFIXES:
        raise SinkError(f"{target}: a preview's name must end in one of {', '.join(SUFFIXES)}")
    check_target(target, source=source, overwrite=overwrite)
    frames = _Moments(source, moments, span or Timespan(), PRIME_FRAMES if engine.spec.recurrent else 0)
    pairs = _Pairs()
    with Pipeline(engine) as pipeline:
        stream = pipeline.add(source.name, frames, pairs, strength=strength)
        while not pipeline.wait(STOP_POLL_S):
            if asked_to_stop():
                raise KeyboardInterrupt
    if stream.error is not None:
        raise stream.error
    if not pairs.rows:
        raise SourceError(f"{source}: must have at least one frame, got none")
    with PartFile(target, source=source, overwrite=overwrite) as part:
        try:
            part.path.write_bytes(_encoded(_sheet([picture for _, picture in pairs.rows]), target.suffix.lower()))
        except OSError as error:
            raise unwritable(target, error) from error
        part.commit()
    return [time_s for time_s, _ in pairs.rows]


@dataclass(frozen=True)
class _Extent:
    """Where a file begins, where in it the moments are, and about how many frames are there."""

    origin_s: Fraction
    start_s: Fraction
    duration_s: Fraction
    rate: Fraction
    time_base: Fraction
    frames: int | None


class _Moments:
    """Of each moment the `lead` frames before it and its own, in an epoch of its own; a `daemon.source.Source`.

    A frame's `origin` is its pixels as they were, and its pts counts from the beginning of the video.
    """

    live: Final = False

    def __init__(self, path: Path, count: int, span: Timespan, lead: int) -> None:
        self.path, self._lead = path, lead
        self.damage: list[str] = []
        self._closed = False
        self._is_picture = path.suffix.lower() in PICTURES
        if not self._is_picture:
            self._extent = extent = _extent_of(path, span)
            self._count = min(count, extent.frames or count)

    def __iter__(self) -> Iterator[Frame]:
        if self._is_picture:
            yield from (replace(frame, origin=frame.pixels) for frame in PictureSource(self.path))
            return
        begin = round(self._extent.origin_s / self._extent.time_base)
        for index in range(self._count):
            for seq, frame in enumerate(
                self._leading_to(self._extent.duration_s * (2 * index + 1) / (2 * self._count))
            ):
                pts = None if frame.pts is None else frame.pts - begin
                yield replace(frame, seq=seq, epoch=index, pts=pts, origin=frame.pixels)

    def _leading_to(self, moment_s: Fraction) -> Iterator[Frame]:
        """`lead` frames at most, and the one that is shown at the moment, if all are shown as long."""
        extent = self._extent
        step = 1 / extent.rate / extent.time_base
        shown_after = (extent.start_s + moment_s) / extent.time_base - step
        start = math.floor(shown_after - self._lead * step) + 1
        # A damaged file loses some frames to `auto`, which shows the others sooner.
        with FileSource(self.path, stream=self.path.name, threads="auto", start=start, deep=True) as source:
            for frame in islice(source, self._lead + 1):
                if self._closed:
                    return
                yield frame
                if frame.pts is not None and frame.pts > shown_after:
                    return

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Pairs:
    """Makes rows of the last frame of each epoch, as it was and restored; a `daemon.sink.Sink`."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, Image]] = []
        """Times in seconds, and pictures."""
        self._last: Frame | None = None

    def lend(self, frame: Frame) -> Pixels:
        return np.empty_like(frame.pixels)

    def send(self, frame: Frame) -> None:
        if self._last and self._last.epoch != frame.epoch:
            self.close()
        self._last = frame

    def close(self) -> None:
        """Make the row of the moment that ends here."""
        if self._last:
            self.rows.append((self._last.time_s or 0.0, _row(self._last)))
        self._last = None


def _extent_of(path: Path, span: Timespan) -> _Extent:
    with open_media(path) as container:
        video = best_video(container, path)
        rate = video.guessed_rate or video.average_rate or Fraction(25)
        time_base = video.time_base or 1 / rate
        origin_s = Fraction(container.start_time or 0, av.time_base)
        frames = video.frames or None
        end_s = _end_s(container, video)
    if end_s is None:  # a raw stream: only its frames can tell
        frames = plan_of(path).packets
        end_s = origin_s + frames / rate
    start_s = origin_s + span.start_s
    if span.end_s is not None:
        end_s = min(end_s, origin_s + span.end_s)
    if start_s >= end_s:
        raise SourceError(f"{path}: a range must have at least one frame, got none from {span}")
    if span != Timespan():
        frames = math.ceil((end_s - start_s) * rate)
    return _Extent(origin_s, start_s, end_s - start_s, rate, time_base, frames)


def _end_s(container: InputContainer, video: VideoStream) -> Fraction | None:
    """Where the last frame ends, by the last packets: a header's duration may count from elsewhere, or be a guess."""
    end_s = None
    try:
        if container.duration:
            container.seek((container.start_time or 0) + container.duration)
        for packet in container.demux(video):
            if packet.size and packet.pts is not None:
                packet_end_s = (packet.pts + (packet.duration or 0)) * packet.time_base
                end_s = packet_end_s if end_s is None else max(end_s, packet_end_s)
    except av.FFmpegError:  # what cannot seek, or is damaged at its end
        if container.duration:
            return Fraction((container.start_time or 0) + container.duration, av.time_base)
    return end_s


def _row(frame: Frame) -> Image:
    """Both pictures as a player shows them, beside each other, with a line of text above each."""
    blur_px = blur_sigma(frame.origin)
    blur = "" if blur_px is None else f"blur {blur_px:.1f} px"
    titles = (f"{clock(frame.time_s or 0.0)}  before  {blur}", "after")
    cells = [
        _titled(_shown(pixels, frame), title)
        for pixels, title in zip((frame.origin, frame.pixels), titles, strict=True)
    ]
    return _framed(np.hstack([cells[0], _gap(cells[0].shape[0], _GAP_PX), cells[1]]))


def _shown(pixels: Pixels, frame: Frame) -> Image:
    image = pixels if pixels.dtype == np.uint8 else cv2.convertScaleAbs(pixels, alpha=1 / 257)
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    width, height = max(1, round(frame.width * frame.sample_aspect_ratio)), frame.height
    scale = min(1.0, CELL_PX / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != (frame.width, frame.height):
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    turn = _TURNS.get(frame.rotation % 360)
    return np.asarray(image if turn is None else cv2.rotate(image, turn), np.uint8)


def _titled(image: Image, title: str) -> Image:
    strip = np.zeros((_TEXT_PX, image.shape[1], 3), np.uint8)
    size = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0]
    scale = 0.5 * min(1.0, image.shape[1] / (size + 8))  # narrow pictures have small titles
    cv2.putText(strip, title, (4, _TEXT_PX - 9), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([strip, image])


def _framed(row: Image) -> Image:
    return np.asarray(cv2.copyMakeBorder(row, 0, _GAP_PX, _GAP_PX, _GAP_PX, cv2.BORDER_CONSTANT), np.uint8)


def _gap(height: int, width: int) -> Image:
    return np.zeros((height, width, 3), np.uint8)


def _sheet(rows: list[Image]) -> Image:
    """All rows below each other; a video may change its size."""
    width = max(row.shape[1] for row in rows)
    return np.vstack([np.hstack([row, _gap(row.shape[0], width - row.shape[1])]) for row in rows])


def _encoded(sheet: Image, suffix: str) -> bytes:
    return cv2.imencode(suffix, sheet, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def clock(time_s: float) -> str:
    """`1:02:03.450`, or `02:03.450` below an hour."""
    minutes, seconds = divmod(round(time_s * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds / 1000:06.3f}" if hours else f"{minutes:02}:{seconds / 1000:06.3f}"

"""Evenly spaced frames of videos, as pictures to learn from.

Knows containers and frames; nothing of training, and nothing of the daemon's sources, which must give every frame.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import av
import cv2
import numpy as np

from .blur import Picture
from .errors import ExportError
from .pictures import PICTURE_SUFFIXES, find_files, read_picture

VIDEO_SUFFIXES: Final = {
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".3gp", ".ogv", ".mxf", ".y4m"),
}
FRAMES_PER_VIDEO: Final = 16
STATIC_LEVELS: Final = 4.0
"""A frame whose 32x32 area means are all nearer than this to those of the frame before shows the same again.

Above the noise that survives such a mean, and below what anything that moves does to one of them.
"""

# SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT: the default conversion is darker by a level.
_EXACT: Final = 0x42004
_HD_HEIGHT: Final = 720
_MATRICES: Final = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # H.273's numbers to libswscale's


def find_material(roots: Iterable[Path]) -> list[Path]:
    """Every picture and every video below `roots`, sorted. ExportError if there is none."""
    folders = list(roots)
    found = find_files(folders, PICTURE_SUFFIXES | VIDEO_SUFFIXES, "pictures or videos")
    if folders and not found:
        raise ExportError(f"{', '.join(map(str, folders))}: no picture or video found")
    return found


def is_video(path: Path) -> bool:
    """Whether `path` is read as a video, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def read_material(path: Path, frames: int = FRAMES_PER_VIDEO) -> Iterator[Picture]:
    """The one picture, or up to `frames` frames of the video, RGB (H, W, 3); ExportError if it does not decode."""
    if is_video(path):
        yield from without_repeats(read_frames(path, frames))
    else:
        yield read_picture(path)


def count_frames(path: Path) -> int:
    """How many frames a video holds, by its packets: headers lie or are silent. ExportError as `read_frames`."""
    with _opened(path) as container:
        return len(_packet_times(container))


def read_frames(path: Path, count: int = FRAMES_PER_VIDEO) -> Iterator[Picture]:
    """Up to `count` frames, evenly spaced and none at the very ends, upright, RGB uint8 (H, W, 3).

    Frames that do not decode or that the decoder marks as damaged are left out, and none stands in for them.
    ExportError for a file that gives no frame, and for interlaced video, whose frames are two moments combed into one.
    """
    given = 0
    with _opened(path) as container:
        packets = _packet_times(container)
        for frame in _chosen(container, packets, _evenly(len(packets), count)):
            yield _progressive(path, frame)
            given += 1
    if not given:
        raise ExportError(f"{path}: not a video that decodes (no frame)")


def read_numbered(path: Path, count: int = FRAMES_PER_VIDEO) -> Iterator[tuple[int, Picture]]:
    """Those of the frames that `read_frames` aims at that surely show their own moment, each after its number.

    A decoder fills what is lost from frames before, and marks few of the frames that are predicted from it. So
    frames are given only of groups, from key frame to key frame, of which all came, none marked as damaged. Where
    no times tell which frame is lost (AVI, raw streams), the whole video is one group. ExportError as `read_frames`.
    """
    given = 0
    with _opened(path) as container:
        packets = _packet_times(container)
        for number, frame in _undamaged(container, packets, _evenly(len(packets), count)):
            yield number, _progressive(path, frame)
            given += 1
    if not given:
        raise ExportError(f"{path}: no group of frames, from key frame to key frame, decodes without damage")


def without_repeats(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """Leave out each picture that hardly differs from the one given before, as the frames of a fixed camera do."""
    before = None
    for picture in pictures:
        small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
        if before is None or np.abs(small - before).max() >= STATIC_LEVELS:
            before = small
            yield picture


class _opened:  # noqa: N801
    """A container; FFmpeg's errors inside the block become one line that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        try:
            # Without "file:" a colon in the name is taken for a protocol.
            self._container = av.open(f"file:{self._path.absolute()}")
        except (av.FFmpegError, OSError) as error:
            raise ExportError(f"{self._path}: not a video that decodes ({error.strerror})") from error
        if not self._container.streams.video:
            self._container.close()
            raise ExportError(f"{self._path}: not a video that decodes (no video stream)")
        self._container.streams.video[0].thread_type = "AUTO"
        return self._container

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._container.close()
        if isinstance(error, av.FFmpegError):
            raise ExportError(f"{self._path}: not a video that decodes ({error.strerror})") from error


def _packet_times(container: Any) -> list[tuple[int | None, bool]]:
    """(pts, is a key frame) of every packet that holds a frame."""
    return [(packet.pts, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]


def _presented(container: Any, packets: Sequence[tuple[int | None, bool]]) -> list[int]:
    """The time of each frame, by its number; empty where times do not tell frames apart."""
    times = sorted(pts for pts, _ in packets if pts is not None)
    # Raw streams have no times, and those of AVI are guessed, after a seek otherwise than before: count instead.
    return [] if len(times) < len(packets) or container.format.name == "avi" else times


def _evenly(length: int, count: int) -> list[int]:
    """The middles of `count` equal parts of a row of `length`; all of it if it is shorter."""
    return list(range(length)) if length <= count else [int((i + 0.5) * length / count) for i in range(count)]


def _chosen(
    container: Any, packets: Sequence[tuple[int | None, bool]], numbers: Sequence[int]
) -> Iterator[av.VideoFrame]:
    """The frames of these numbers, in the order of presentation, without those that are damaged."""
    times = _presented(container, packets)
    if not times:
        wanted = set(numbers)
        container.seek(0)
        for number, frame in enumerate(_decoded(container)):
            if number in wanted and not frame.is_corrupt:
                yield frame
        return
    keys = sorted(pts for pts, is_key in packets if is_key and pts is not None)
    position: int | None = None
    frames: Iterator[av.VideoFrame] = iter(())
    latest: av.VideoFrame | None = None
    for number in numbers:
        target = times[number]
        key = keys[max(0, bisect.bisect_right(keys, target) - 1)] if keys else times[0]
        if position is None or key > position:
            # A long video is entered at the key frame before each target, not decoded from its beginning.
            container.seek(key, stream=container.streams.video[0], backward=True)
            frames, latest, position = _decoded(container), None, None
        while position is None or position < target:
            latest = next(frames, None)
            if latest is None:
                break
            position = latest.pts if latest.pts is not None else position
        if latest is not None and latest.pts == target and not latest.is_corrupt:
            yield latest


def _undamaged(
    container: Any, packets: Sequence[tuple[int | None, bool]], numbers: Sequence[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) of these numbers, out of groups of which every frame came undamaged."""
    times = _presented(container, packets)
    keys = {bisect.bisect_left(times, pts) for pts, is_key in packets if is_key and pts is not None} if times else ()
    for first, end in pairwise(sorted({0, *keys, len(packets)})):
        wanted = [number for number in numbers if first <= number < end]
        if not wanted:
            continue
        container.seek(times[first] if times else 0, stream=container.streams.video[0], backward=True)
        chosen: dict[int, av.VideoFrame] = {}
        number = first
        for frame in _decoded(container):
            if times and (frame.pts is None or frame.pts < times[first]):
                continue  # shown before the key frame that it is stored behind
            if times and number == end:
                break
            if frame.is_corrupt or (times and frame.pts != times[number]):
                break
            if number in wanted:
                chosen[number] = frame
            number += 1
        if number == end:
            yield from chosen.items()


def _decoded(container: Any) -> Iterator[av.VideoFrame]:
    """Every frame from here on; a packet that does not decode is not the end of them."""
    for packet in container.demux(video=0):
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            continue


def _progressive(path: Path, frame: av.VideoFrame) -> Picture:
    if frame.interlaced_frame:
        raise ExportError(f"{path}: videos must be progressive, got interlaced frames")
    return _to_rgb(frame)


def _to_rgb(frame: av.VideoFrame) -> Picture:
    """RGB (H, W, 3) by the frame's own matrix and range, upright."""
    matrix = _MATRICES.get(int(frame.colorspace)) or (1 if frame.height >= _HD_HEIGHT else 5)
    full = int(frame.color_range) == 2 or frame.format.name.startswith("yuvj") or frame.format.is_rgb
    planar = frame.reformat(
        format="gbrp",
        interpolation=_EXACT,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=2 if full else 1,
        dst_color_range=2,
    )
    green, blue, red = (
        np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        for plane in planar.planes
    )
    rgb = cv2.merge([red, green, blue])
    return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)), np.uint8)

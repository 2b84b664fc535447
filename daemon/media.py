"""Media files as such: opening them, finding the video in them, and telling whether their end is missing.

Knows containers and streams; decodes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from .declared_size import declared_size
from .errors import SourceError
from .matroska import broken_at

_WRITTEN_DURATION: Final = ("matroska", "avi", "flv", "asf")  # others may only estimate it
_DURATION_TOLERANCE_S: Final = 0.5
_UNKNOWN_DURATION_S: Final = (2**31 - 1) / 1000  # what FFmpeg makes of an FLV without frames
_SIZE_TOLERANCE: Final = 8  # bytes: some writers of AVI count its header twice
# Text that names other files: those were not given to us, and changes in them would not be noticed.
_LISTS: Final = ("concat", "dash", "hls", "imf", "sdp")


def open_media(path: Path) -> InputContainer:
    """Open a media file for reading; SourceError, in one line, if it is missing or not a media file."""
    if not path.exists():
        raise SourceError(f"{path}: no such file")
    if not path.is_file():
        raise SourceError(f"{path}: must be a file, got a {'folder' if path.is_dir() else 'device or pipe'}")
    try:
        # With the protocol before it, a name like `a:b.mp4` is not taken for one.
        container = av.open(f"file:{path.absolute()}", metadata_errors="replace")
    except av.InvalidDataError as error:
        raise SourceError(f"{path}: must be a video file, got one of another kind, or without its index") from error
    except av.FFmpegError as error:
        raise SourceError(f"{path}: cannot be read ({reason(error)})") from error
    if container.format.name in _LISTS:
        container.close()
        raise SourceError(f"{path}: must be a video file, got a list of others ({container.format.name})")
    return container


def best_video(container: InputContainer, path: Path) -> VideoStream:
    """The video stream that a player would show; SourceError if there is none but cover pictures."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        kinds = " and ".join(sorted({stream.type for stream in container.streams}))
        got = "only a cover picture" if container.streams.video else f"only {kinds}" if kinds else "none"
        raise SourceError(f"{path}: must have a video stream, got {got}")
    preferred = [stream for stream in streams if stream.disposition & Disposition.default] or streams
    best = container.streams.best("video")
    return next((stream for stream in preferred if best and stream.index == best.index), preferred[0])


def reason(error: av.FFmpegError) -> str:
    """What went wrong, without error numbers and function names."""
    return (error.strerror or type(error).__name__).lower()


def duration_s(container: InputContainer) -> float | None:
    return None if container.duration is None else container.duration / av.time_base


def cut_off(container: InputContainer, video: VideoStream, path: Path, end_s: float) -> str | None:
    """One line if the file ends before its header says, or has a hole that readers pass over in silence.

    end_s: where the last packet of any stream ended.
    """
    try:
        size = path.stat().st_size
        declared = declared_size(path, container.format.name)
        hole = broken_at(path) if "matroska" in container.format.name else None
    except OSError:  # deleted while it was played
        return None
    if "mp4" in container.format.name:
        # What an edit list leaves out is not in the index either, so this holds for edited files too.
        missing = [entry.timestamp for entry in video.index_entries if entry.pos + entry.size > size]
        if missing:
            begin_s = float(min(missing) * (video.time_base or 0))
            frames = f"{len(missing)} of {len(video.index_entries)} frames"
            return f"the file is cut off: {frames} missing, from {begin_s:.3f} s"
    declared_s = duration_s(container)
    there_s = end_s - (container.start_time or 0) / av.time_base
    written = any(name in container.format.name for name in _WRITTEN_DURATION)
    if written and declared_s is not None and _DURATION_TOLERANCE_S < declared_s - there_s < _UNKNOWN_DURATION_S:
        return f"the file is cut off at {there_s:.3f} s of {declared_s:.3f} s"
    if declared is not None and declared - size > _SIZE_TOLERANCE:
        return f"the file is cut off: {size} of {declared} bytes are there"
    if hole is not None:
        return f"the file is damaged at byte {hole} of {size}: some of what follows was lost"
    return None

"""What becomes of files, told to a program: one JSON object a line.

Knows jobs, outcomes and a text stream; nothing of how files are restored.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

import av
from av.stream import Disposition

from engine.errors import EngineError

from .enhance import Job, Outcome
from .errors import DaemonError, SourceError
from .media import open_media

PROGRESS_S: Final = 1.0
"""Of one file, progress is told no more often."""


class Events:
    """Writes events to `stream`; any thread may call. now: a clock in seconds.

    Every object has `event`, and `input` and `output` where it is about one file:

    - `started`
    - `progress`: `frames`, `expected` (frames of the file, null if unknown), `fps`, `eta_s` (null if unknown)
    - `finished`: `status` (`done`, `partial`, `skipped`, `stopped`); for the first two also `frames`, `seconds`, `kept`
      (what else of the source is in the result), `changed` and `lost`, a line each
    - `failed`: `error`, one line

    Each file that was started ends in one `finished` or `failed`, unless the process is killed.
    """

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._now = stream, now
        self._lock = threading.Lock()
        self._first: dict[Path, tuple[float, int]] = {}  # by target: when progress was first known, and the frames then
        self._told_s: dict[Path, float] = {}
        self._failure: BaseException | None = None

    def started(self, job: Job) -> None:
        self._told_s[job.target] = self._now()
        self._tell("started", job)

    def progress(self, job: Job, frames: int, expected: int | None) -> None:
        now = self._now()
        with self._lock:
            # Frames of an interrupted run are there from the first, and say nothing of the speed.
            first_s, first = self._first.setdefault(job.target, (now, frames))
            if now - self._told_s.get(job.target, first_s) < PROGRESS_S:
                return
            self._told_s[job.target] = now
        fps = (frames - first) / (now - first_s) if now > first_s else 0.0
        eta_s = round(max(0, expected - frames) / fps, 1) if expected is not None and fps else None
        self._tell("progress", job, frames=frames, expected=expected, fps=round(fps, 2), eta_s=eta_s)

    def finished(self, job: Job, status: str, outcome: Outcome | None = None) -> None:
        """outcome: of what was restored."""
        what: dict[str, Any] = {}
        if outcome:
            what = {
                "frames": outcome.frames,
                "seconds": round(outcome.seconds, 3),
                "kept": beside_the_video(outcome.job.target),
                "changed": outcome.warnings,
                "lost": outcome.damage,
            }
        self._tell("finished", job, status=status, **what)

    def failed(self, error: BaseException, job: Job | None = None) -> None:
        """Told once for each error, where it concerns all files without one."""
        if error is not self._failure:
            self._failure = error
            self._tell("failed", job, error=" ".join(str(error).split()))

    def _tell(self, event: str, job: Job | None, **what: Any) -> None:
        about = {"input": str(job.source), "output": str(job.target)} if job else {}
        line = json.dumps({"event": event, **about, **what}) + "\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()


@contextmanager
def telling(stream: TextIO | None) -> Iterator[Events | None]:
    """Events on `stream`, where there is one; of the error that ends the block, too."""
    events = Events(stream) if stream else None
    try:
        yield events
    except (DaemonError, EngineError, OSError) as error:
        if events and not isinstance(error, BrokenPipeError):  # nobody listens any more
            events.failed(error)
        raise


def beside_the_video(path: Path) -> list[str]:
    """What a video file has besides its video, e.g. `audio (aac)`, `2 chapters`; nothing for a picture."""
    kept = []
    try:
        with open_media(path) as container:
            for stream in container.streams:
                if stream.type == "video" and stream.disposition & Disposition.attached_pic:
                    kept.append(f"cover ({stream.codec_context.name})")
                elif stream.type != "video":
                    name = stream.codec_context.name if stream.codec_context else ""
                    kept.append(f"{stream.type} ({name})" if name else stream.type)
            if count := len(container.chapters()):
                kept.append(f"{count} chapter{'s' * (count > 1)}")
    except (SourceError, av.FFmpegError):  # a picture
        return []
    return kept

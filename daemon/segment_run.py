"""Segments of a video on their way through one pipeline, a few at a time, each from the source's file into its own.

Knows sources, pipelines and writers of segments; nothing of the job that they belong to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from engine.protocol import Engine, EngineSpec

from .errors import SourceError
from .file_source import FileSource
from .pipeline import Pipeline
from .plan import Segment
from .segment_writer import SegmentWriter
from .stream import Stream
from .strength import StrengthSetting
from .video_setup import VideoSetup

AT_ONCE: Final = 2
"""Segments that are worked on at the same time, so that one's start and end are hidden by the other."""
STOP_POLL_S: Final = 0.1
"""How soon a request to stop is noticed."""


@dataclass(frozen=True)
class SegmentTask:
    """A segment to be restored into `path`; all that a process needs to know besides its engine.

    regular: the times of the whole video rise. prime: frames before the segment that the model must see.
    strength: the share of the model's change that is let through.
    """

    source: Path
    target: Path
    path: Path
    segment: Segment
    video: VideoSetup
    regular: bool
    prime: int
    strength: StrengthSetting = 1.0


def restore_segments(
    tasks: list[SegmentTask], engine: Engine, on_frame: Callable[[], None], asked_to_stop: Callable[[], bool]
) -> None:
    """Restore every segment into its file, `AT_ONCE` at a time.

    Raises the error of the first that fails, and KeyboardInterrupt when `asked_to_stop`; then those that were not
    finished leave nothing.
    """
    waiting = iter(tasks)
    running: list[_Running] = []
    with Pipeline(engine, most=1) as pipeline:
        try:
            while True:
                for task in islice(waiting, AT_ONCE - len(running)):
                    running.append(_Running(task, pipeline, on_frame))  # noqa: PERF401 - each kept before the next
                if not running:
                    return
                # Asked for here, because an exception out of a signal handler may strike where nothing can undo the
                # work, or inside a library that swallows it.
                if asked_to_stop():
                    raise KeyboardInterrupt
                for ended in _ended(pipeline, running):
                    running.remove(ended)
                    ended.finish(pipeline)
        finally:
            for each in running:  # abandoned first, else stopping would write the rest of it
                each.writer.abandon()
            pipeline.stop()
            for each in running:
                each.writer.discard()


class _Running:
    """A segment on its way through the pipeline."""

    def __init__(self, task: SegmentTask, pipeline: Pipeline, on_frame: Callable[[], None]) -> None:
        segment = task.segment
        start = segment.start
        primed = bool(task.prime and start)
        self.source = FileSource(
            task.source,
            stream=task.source.name,
            start=start.pts if start else None,
            stop=segment.stop,
            key=segment.prime if primed or segment.is_cut else start,
            prime=task.prime if primed else 0,
            deep=True,
        )
        self._spec = pipeline.engine.spec
        try:
            self.writer = SegmentWriter(
                task.path,
                task.target,
                task.video,
                start=start.pts if start else None,
                stop=segment.stop,
                regular=task.regular,
                on_frame=on_frame,
            )
        except BaseException:
            self.source.__exit__(None, None, None)
            raise
        self.stream: Stream = pipeline.add(
            f"{task.source.name} {segment.index}", self.source, self.writer, strength=task.strength
        )

    def finish(self, pipeline: Pipeline) -> None:
        """Keep what was written; raises the error that ended the stream, and leaves nothing then."""
        try:
            self.stream.join()
            with pipeline.changed:
                pipeline.streams.remove(self.stream)  # else it would be held as long as the pipeline
            if self.stream.error is not None:
                raise self.stream.error
            if self.source.damage and not self.source.path.exists():  # a drive that was unplugged, not a damaged file
                raise SourceError(f"{self.source.path}: must be there until it is restored")
            self.writer.commit(
                self.source.damage, [*self.source.warnings, *notes_on_depth(self.source.depth, self._spec)]
            )
        except BaseException:
            self.writer.discard()
            raise
        finally:
            _give_memory_back()


def _give_memory_back() -> None:
    """What threads that have ended freed, which glibc keeps: without it, 280 MB became 560 MB within ten segments."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:  # only glibc has it
        trim(0)


def notes_on_depth(depth: int, spec: EngineSpec) -> list[str]:
    """A line if the engine takes fewer bits than the frames have."""
    if depth <= 8 or spec.floating:
        return []
    return [
        f"restored at 8 bits: model {spec.model!r} takes no more; what is finer of the source's {depth} bits is kept"
    ]


def _ended(pipeline: Pipeline, running: list[_Running]) -> list[_Running]:
    """Wait for a segment to end, for a short time; those that have. Raises what stopped the whole pipeline."""
    with pipeline.changed:
        pipeline.changed.wait_for(lambda: any(each.stream.ended for each in running), STOP_POLL_S)
    pipeline.wait(0)
    return [each for each in running if each.stream.ended]

"""One video from beginning to end: planned, restored segment by segment, put together; interrupted and resumed.

Knows the parts of a job and their order; nothing of pictures, folders of inputs, or the command line.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

import av

from engine.protocol import Engine, EngineSpec

from .assembly import Assembly, together
from .encoding import Encoding
from .errors import DaemonError, FullDiskError, SourceError
from .file_source import FileSource
from .job import Fingerprint, Job, fingerprint_of, is_begun, job_folder
from .packet_file import PacketFile, is_whole
from .part_file import PartFile, check_target
from .pipeline import Pipeline
from .plan import PRIME_FRAMES, Plan, Segment, plan_of
from .segment_writer import SegmentRecord, SegmentWriter
from .stream import Stream
from .video_setup import VideoSetup, video_setup

log = logging.getLogger(__name__)

AT_ONCE: Final = 2
"""Segments that are worked on at the same time, so that one's start and end are hidden by the other."""
STOP_POLL_S: Final = 0.1
"""How soon a request to stop is noticed."""
_MOST_DAMAGE_LINES: Final = 20

Progress = Callable[[int, int | None], None]
"""Told the frames done and the frames expected, if that is known, after each frame; by any thread."""


@dataclass(frozen=True)
class VideoJob:
    """What is to be done. model_sha256: of the model's files, so that another model of the same name is another job."""

    source: Path
    target: Path
    encoding: Encoding
    overwrite: bool = False
    model_sha256: str = ""


@dataclass(frozen=True)
class VideoResult:
    """What was done. kept: segments that were there from a run before."""

    frames: int
    damage: tuple[str, ...]
    warnings: tuple[str, ...]
    segments: int = 1
    kept: int = 0


@dataclass(frozen=True)
class SegmentTask:
    """A segment to be restored into `path`; all that a process needs to know besides its engine.

    regular: the times of the whole video rise. prime: frames before the segment that the model must see.
    """

    source: Path
    target: Path
    path: Path
    segment: Segment
    video: VideoSetup
    regular: bool
    prime: int


def restore_video(
    job: VideoJob,
    engine: Engine,
    progress: Progress | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> VideoResult:
    """Restore `job.source` into `job.target`, or go on where an earlier run was interrupted.

    Raises KeyboardInterrupt when `asked_to_stop`. After that, and where the disk is full or the engine fails, what is
    done is kept for the next run; after any other error nothing is left, since it would come again.
    """
    if job_folder(job.target).is_dir():
        with Job(job.target) as folder:
            if noted := folder.result():  # killed after the target had got its name
                folder.remove()
                return VideoResult(**{**noted, "damage": tuple(noted["damage"]), "warnings": tuple(noted["warnings"])})
    check_target(job.target, source=job.source, overwrite=job.overwrite)
    plan = plan_of(job.source, asked_to_stop)
    video = video_setup(job.source, job.target, job.encoding)
    with Job(job.target) as folder:
        try:
            return _restore(job, folder, plan, video, engine, progress, asked_to_stop)
        except FullDiskError as error:
            if not is_begun(job.target):
                raise
            raise FullDiskError(f"{error}; {how_to_go_on(job.target)}") from error
        except DaemonError:
            folder.remove()
            raise


def how_to_go_on(target: Path) -> str:
    return f"what is done is kept in {job_folder(target)}: the same command goes on from there"


def _restore(
    job: VideoJob,
    folder: Job,
    plan: Plan,
    video: VideoSetup,
    engine: Engine,
    progress: Progress | None,
    asked_to_stop: Callable[[], bool],
) -> VideoResult:
    fingerprint = _fingerprint(job, plan, video, engine.spec)
    if differing := folder.begin(fingerprint):
        log.warning("%s: the job begins anew: another %s than before", job.target, ", ".join(differing))
    _check_container(job, folder, video)
    prime = PRIME_FRAMES if engine.spec.recurrent else 0
    missing = [
        SegmentTask(job.source, job.target, path, segment, video, not plan.why_one, prime)
        for segment in plan.segments
        if not is_whole(path := folder.segment(segment.index))
    ]
    kept = len(plan.segments) - len(missing)
    if kept:
        log.info("%s: %d of %d segments are done already", job.target, kept, len(plan.segments))
    counter = _Counter(progress, plan.packets - sum(task.segment.packets for task in missing), plan.packets)
    restore_segments(missing, engine, counter.one_more, asked_to_stop)
    if fingerprint_of(job.source) != fingerprint["input"]:
        raise SourceError(f"{job.source}: must stay as it is while it is restored, but was changed")
    return _put_together(job, folder, plan, video, kept, asked_to_stop)


def restore_segments(
    tasks: list[SegmentTask], engine: Engine, on_frame: Callable[[], None], asked_to_stop: Callable[[], bool]
) -> None:
    """Restore every segment into its file, `AT_ONCE` at a time.

    Raises the error of the first that fails, and KeyboardInterrupt when `asked_to_stop`; then those that were not
    finished leave nothing.
    """
    waiting = iter(tasks)
    running: list[_Running] = []
    with Pipeline(engine) as pipeline:
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
            key=segment.prime if primed else start,
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
        self.stream: Stream = pipeline.add(f"{task.source.name} {segment.index}", self.source, self.writer)

    def finish(self, pipeline: Pipeline) -> None:
        """Keep what was written; raises the error that ended the stream, and leaves nothing then."""
        try:
            self.stream.join()
            with pipeline.changed:
                pipeline.streams.remove(self.stream)  # else it would be held as long as the pipeline
            if self.stream.error is not None:
                raise self.stream.error
            self.writer.commit(self.source.damage, [*self.source.warnings, *_cut(self.source.depth, self._spec)])
        except BaseException:
            self.writer.discard()
            raise


def _cut(depth: int, spec: EngineSpec) -> list[str]:
    """A line if the engine takes fewer bits than the frames have."""
    if depth <= 8 or spec.floating:
        return []
    return [
        f"restored at 8 bits: model {spec.model!r} takes no more; what is finer of the video's {depth} bits is kept"
    ]


def _ended(pipeline: Pipeline, running: list[_Running]) -> list[_Running]:
    """Wait for a segment to end, for a short time; those that have. Raises what stopped the whole pipeline."""
    with pipeline.changed:
        pipeline.changed.wait_for(lambda: any(each.stream.ended for each in running), STOP_POLL_S)
    pipeline.wait(0)
    return [each for each in running if each.stream.ended]


def _check_container(job: VideoJob, folder: Job, video: VideoSetup) -> None:
    """Raise now what would come of the container or the encoder only when all is restored."""
    with PartFile(job.target, source=job.source, overwrite=job.overwrite, folder=folder.folder) as part:
        Assembly(job.source, part.path, job.target, video).__exit__(None, None, None)


def _put_together(
    job: VideoJob, folder: Job, plan: Plan, video: VideoSetup, kept: int, asked_to_stop: Callable[[], bool]
) -> VideoResult:
    records: list[SegmentRecord] = []
    with PartFile(job.target, source=job.source, overwrite=job.overwrite, folder=folder.folder) as part:
        with Assembly(job.source, part.path, job.target, video) as assembly:
            for segment in plan.segments:
                with PacketFile(folder.segment(segment.index)) as packets:
                    records.append(SegmentRecord(**packets.record))
                    assembly.add(segment.index, packets, asked_to_stop)
            frames = sum(record.frames for record in records)
            if not frames:
                raise SourceError(f"{job.source}: must have at least one frame, got none")
            assembly.close()
        result = VideoResult(
            frames=frames,
            damage=_shortened(together(line for record in records for line in record.damage)),
            warnings=(
                *together(line for record in records for line in record.warnings),
                *together([*assembly.notes, *(line for record in records for line in record.notes)]),
            ),
            segments=len(plan.segments),
            kept=kept,
        )
        folder.note_result(part.path, asdict(result))
        part.commit()
    folder.remove()
    return result


def _fingerprint(job: VideoJob, plan: Plan, video: VideoSetup, spec: EngineSpec) -> Fingerprint:
    """All that the result depends on."""
    versions = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in av.library_versions.items())
    segments = [segment.as_json() for segment in plan.segments]
    return {
        "input": fingerprint_of(job.source),
        "segments": repr(segments),
        "settings": repr(job.encoding),
        "model": f"{spec.model} {job.model_sha256}".strip(),
        "engine": f"{spec.backend}, tile {spec.tile}, batch {spec.best_batch}",
        "processor": _processor(),
        "encoder": f"{replace(video, setup=replace(video.setup, notes=()))!r}, PyAV {av.__version__}, {versions}",
        "deblurd": _version(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _version() -> str:
    try:
        return importlib.metadata.version("deblurd")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _shortened(lines: list[str]) -> tuple[str, ...]:
    if len(lines) <= _MOST_DAMAGE_LINES:
        return tuple(lines)
    return (*lines[:_MOST_DAMAGE_LINES], f"{len(lines) - _MOST_DAMAGE_LINES} more lines like these")


class _Counter:
    """Tells the frames done, whichever thread did them."""

    def __init__(self, progress: Progress | None, done: int, expected: int) -> None:
        self._progress, self._done, self._expected = progress, done, expected
        self._lock = threading.Lock()

    def one_more(self) -> None:
        with self._lock:
            self._done += 1
            if self._progress:
                self._progress(self._done, self._expected or None)

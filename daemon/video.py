"""One video from beginning to end: planned, restored segment by segment, put together; interrupted and resumed.

Knows the parts of a job and their order; nothing of pictures, folders of inputs, or the command line.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from engine.protocol import Engine

from .assembly import Assembly, together
from .compare import Comparison
from .encoding import Encoding
from .errors import DaemonError, SinkError, SourceError, StorageError
from .fingerprint import encoder_fingerprint, file_fingerprint, node_fingerprint
from .job import Job, is_begun, job_folder
from .packet_file import PacketFile, is_whole
from .part_file import PartFile, check_target
from .plan import PRIME_FRAMES, Plan, plan_of
from .segment_run import SegmentTask, restore_segments
from .segment_writer import SegmentRecord
from .strength import StrengthSetting
from .timespan import Timespan, Window, cut, window_of
from .video_setup import VideoSetup, video_setup

log = logging.getLogger(__name__)

_MOST_DAMAGE_LINES: Final = 20

Progress = Callable[[int, int | None], None]
"""Told the frames done and the frames expected, if that is known, after each frame; by any thread."""


@dataclass(frozen=True)
class VideoJob:
    """What is to be done.

    model_sha256: of the model's files, so that another model of the same name is another job.
    strength: the share of the model's change that is let through, or `auto`.
    span: the part of the source that is written; None is all of it.
    comparison: how before and after are shown in each frame; None shows what is restored only.
    strict: what cannot keep all of its source is not made.
    """

    source: Path
    target: Path
    encoding: Encoding
    overwrite: bool = False
    model_sha256: str = ""
    strength: StrengthSetting = "auto"
    span: Timespan | None = None
    comparison: Comparison | None = None
    strict: bool = False


@dataclass(frozen=True)
class VideoResult:
    """What was done. kept: segments that were there from a run before."""

    frames: int
    damage: tuple[str, ...]
    warnings: tuple[str, ...]
    segments: int = 1
    kept: int = 0


def restore_video(
    job: VideoJob,
    engine: Engine,
    progress: Progress | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> VideoResult:
    """Restore `job.source` into `job.target`, or go on where an earlier run was interrupted.

    Raises KeyboardInterrupt when `asked_to_stop`. After that, and where the disk is full, the source is gone for now or
    the engine fails, what is done is kept for the next run; after any other error nothing is left, since it would come
    again.
    """
    if job_folder(job.target).is_dir():
        with Job(job.target) as folder:
            if noted := folder.result():  # killed after the target had got its name
                folder.remove()
                return VideoResult(**{**noted, "damage": tuple(noted["damage"]), "warnings": tuple(noted["warnings"])})
    check_target(job.target, source=job.source, overwrite=job.overwrite)
    plan = plan_of(job.source, asked_to_stop)
    video = video_setup(job.source, job.target, job.encoding, job.comparison)
    window = window_of(job.source, job.span) if job.span else None
    if window:
        plan = cut(plan, window, video.rate)
    with Job(job.target) as folder:
        try:
            return _restore(job, folder, plan, video, window, engine, progress, asked_to_stop)
        except DaemonError as error:
            passing = isinstance(error, StorageError) or not job.source.exists()
            if passing and is_begun(job.target):
                raise type(error)(f"{error}; {how_to_go_on(job.target)}") from error
            folder.remove()
            raise


def how_to_go_on(target: Path) -> str:
    return f"what is done is kept in {job_folder(target)}: the same command goes on from there"


def _restore(
    job: VideoJob,
    folder: Job,
    plan: Plan,
    video: VideoSetup,
    window: Window | None,
    engine: Engine,
    progress: Progress | None,
    asked_to_stop: Callable[[], bool],
) -> VideoResult:
    fingerprint = {
        "input": file_fingerprint(job.source),
        "range": str(job.span or "all"),
        "segments": repr(plan.segments),
        "settings": f"{job.encoding!r}, strength {job.strength}",
        "model": f"{engine.spec.model} {job.model_sha256}".strip(),
        **node_fingerprint(engine.spec),
        "encoder": encoder_fingerprint(video),
    }
    if differing := folder.begin(fingerprint):
        log.warning("%s: the job begins anew: another %s than before", job.target, ", ".join(differing))
    _check_container(job, folder, video, window)
    # A strength that follows the blur has a history, too: beginning with each segment anew, it would jump.
    prime = PRIME_FRAMES if engine.spec.recurrent or job.strength == "auto" else 0
    missing = [
        SegmentTask(job.source, job.target, path, segment, video, not plan.why_one, prime, job.strength)
        for segment in plan.segments
        if not is_whole(path := folder.segment(segment.index))
    ]
    kept = len(plan.segments) - len(missing)
    if kept:
        log.info("%s: %d of %d segments are done already", job.target, kept, len(plan.segments))
    counter = _Counter(progress, plan.packets - sum(task.segment.packets for task in missing), plan.packets)
    restore_segments(missing, engine, counter.one_more, asked_to_stop)
    if file_fingerprint(job.source) != fingerprint["input"]:
        raise SourceError(f"{job.source}: must stay as it is while it is restored, but was changed")
    return _put_together(job, folder, plan, video, window, kept, asked_to_stop)


def _check_container(job: VideoJob, folder: Job, video: VideoSetup, window: Window | None) -> None:
    """Raise now what would come of the container or the encoder only when all is restored."""
    with (
        PartFile(job.target, source=job.source, overwrite=job.overwrite, folder=folder.folder) as part,
        Assembly(job.source, part.path, job.target, video, window) as assembly,
    ):
        notes = together(assembly.notes)
    if job.strict:
        refuse_losses(job.target, notes)


def _put_together(
    job: VideoJob,
    folder: Job,
    plan: Plan,
    video: VideoSetup,
    window: Window | None,
    kept: int,
    asked_to_stop: Callable[[], bool],
) -> VideoResult:
    records: list[SegmentRecord] = []
    with PartFile(job.target, source=job.source, overwrite=job.overwrite, folder=folder.folder) as part:
        with Assembly(job.source, part.path, job.target, video, window) as assembly:
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
        if job.strict:
            refuse_losses(job.target, [*result.damage, *result.warnings])
        folder.note_result(part.path, asdict(result))
        part.commit()
    folder.remove()
    return result


def refuse_losses(target: Path, losses: Sequence[str]) -> None:
    """SinkError if there are any."""
    if losses:
        more = f"; and {len(losses) - 1} more" if len(losses) > 1 else ""
        raise SinkError(f"{target}: must keep all of its source (--strict), but {losses[0]}{more}")


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

"""Enhance files: what is to be done for the paths given, and one file from beginning to end.

Knows sources, sinks and the pipeline between them; nothing of the command line.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from engine.protocol import Engine

from . import pictures
from .animations import AnimationSource, AnimationWriter, is_animation
from .compare import Comparison
from .encoding import Encoding
from .errors import SinkError, SourceError
from .media import open_media
from .pictures import PictureSource, PictureWriter
from .pipeline import Pipeline
from .segment_run import STOP_POLL_S, notes_on_depth
from .strength import StrengthSetting
from .timespan import Timespan
from .video import Progress, VideoJob, VideoResult, refuse_losses, restore_video

VIDEO_SUFFIXES: Final = (
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".ogv", ".qt", ".ts", ".vob", ".webm", ".wmv"),
)


@dataclass(frozen=True)
class Job:
    """One file to enhance, and where the result goes."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Settings:
    """How results are written.

    quality: of JPEG and WebP pictures, 1 to 100.
    model_sha256: of the engine's model, so that a video goes on only where it was begun with the same one.
    strength: the share of the model's change that is let through, 0 to 1, or `auto`: as each frame's blur asks for.
    span: the part of a video that is written; None is all of it.
    comparison: how before and after are shown in each frame of a video; None shows what is restored only.
    strict: what cannot keep all of its source is not made.
    """

    encoding: Encoding = field(default_factory=Encoding)
    quality: int = 95
    overwrite: bool = False
    model_sha256: str = ""
    strength: StrengthSetting = "auto"
    span: Timespan | None = None
    comparison: Comparison | None = None
    strict: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    status: `partial` if some of the source could not be read, and `damage` tells what.
    warnings: what of the source the result does not keep.
    segments, kept: of a video, its segments, and how many of them were there from an interrupted run.
    """

    job: Job
    frames: int
    status: Literal["done", "partial"]
    warnings: tuple[str, ...]
    damage: tuple[str, ...]
    seconds: float
    segments: int = 1
    kept: int = 0


def expand(inputs: list[Path], output: Path) -> list[Job]:
    """The jobs for `inputs`, in the order of their names.

    A file goes to `output`, or into it if that is a folder. Of a folder, every video and picture goes to the
    same place below `output`. Several inputs, or a folder, need an `output` that is a folder, or can become one.
    Raises SourceError or SinkError.
    """
    for path in inputs:
        if not path.exists():
            raise SourceError(f"{path}: no such file or folder")
    if len(inputs) == 1 and not inputs[0].is_dir():
        return [Job(inputs[0], output / inputs[0].name if output.is_dir() else output)]
    if output.exists() and not output.is_dir():
        raise SinkError(f"{output}: must be a folder for more than one input, got a file")
    jobs = []
    results = output.resolve()
    for path in inputs:
        if path.resolve() == results:
            raise SinkError(f"{output}: the output must be another folder than the input")
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if _is_media(file)]
            found = [file for file in files if not file.resolve().is_relative_to(results)]
            if not found:
                raise SourceError(f"{path}: must hold a video or a picture, got none")
            jobs += [Job(file, output / file.relative_to(path)) for file in found]
        else:
            jobs.append(Job(path, output / path.name))
    by_target: dict[Path, Job] = {}
    for job in jobs:
        if other := by_target.get(job.target):
            raise SinkError(
                f"{job.target}: every input needs an output of its own, got {other.source} and {job.source}"
            )
        by_target[job.target] = job
    return jobs


def enhance(
    job: Job,
    engine: Engine,
    settings: Settings | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Restore one file. Raises SourceError, SinkError or what the engine raises; then there is no result.

    When `stop` is set, KeyboardInterrupt is raised, and there is no result either; but of a video, the segments that
    are done are kept beside it, and the next call goes on from there.

    What of a damaged file can be read is restored, and the outcome is `partial`.
    """
    settings = settings or Settings()
    began = time.monotonic()
    created: list[Path] = []
    try:
        if _is_picture(job.source) and not _becomes_video(job):
            done = _restore_picture(job, engine, settings, stop, created)
        else:
            done = _restore_video(job, engine, settings, progress, stop, created)
    except BaseException:
        for folder in created:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    return Outcome(
        job=job,
        frames=done.frames,
        status="partial" if done.damage else "done",
        warnings=done.warnings,
        damage=done.damage,
        seconds=time.monotonic() - began,
        segments=done.segments,
        kept=done.kept,
    )


def _restore_video(
    job: Job,
    engine: Engine,
    settings: Settings,
    progress: Progress | None,
    stop: threading.Event | None,
    created: list[Path],
) -> VideoResult:
    open_media(job.source).close()  # before a folder is made
    created += _make_folder(job.target.parent)
    return restore_video(
        VideoJob(
            job.source,
            job.target,
            settings.encoding,
            settings.overwrite,
            settings.model_sha256,
            settings.strength,
            settings.span,
            settings.comparison,
            settings.strict,
        ),
        engine,
        progress,
        stop.is_set if stop else lambda: False,
    )


def _restore_picture(
    job: Job, engine: Engine, settings: Settings, stop: threading.Event | None, created: list[Path]
) -> VideoResult:
    source: PictureSource | AnimationSource
    writer: PictureWriter | AnimationWriter
    if settings.span:
        raise SourceError(f"{job.source}: a range must be of a video, got a picture")
    if settings.comparison:
        raise SourceError(f"{job.source}: a comparison must be of a video, got a picture; try a preview")
    how: dict[str, Any] = {"quality": settings.quality, "overwrite": settings.overwrite}
    if is_animation(job.source, job.target):
        source = AnimationSource(job.source, stream=job.source.name)
    else:
        upright = not pictures.keeps_orientation(job.target)
        source = PictureSource(job.source, stream=job.source.name, upright=upright)
    with source:
        created += _make_folder(job.target.parent)
        if isinstance(source, AnimationSource):
            writer = AnimationWriter(job.source, job.target, source.description, **how)
        else:
            writer = PictureWriter(job.source, job.target, **how)
        with writer, Pipeline(engine) as pipeline:
            stream = pipeline.add(job.source.name, source, writer, strength=settings.strength)
            while not pipeline.wait(STOP_POLL_S):
                if stop and stop.is_set():
                    writer.abandon()  # else stopping would write the rest first
                    raise KeyboardInterrupt
            if stream.error is not None:
                raise stream.error
            warnings = (*source.warnings, *notes_on_depth(source.depth, engine.spec), *writer.notes)
            if settings.strict:
                refuse_losses(job.target, [*source.damage, *warnings])
            writer.commit()
    return VideoResult(writer.frames, tuple(source.damage), warnings)


def _make_folder(folder: Path) -> list[Path]:
    """Make `folder` and those above it; gives what was made, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"{folder}: the folder cannot be made ({error.strerror})") from error
    return missing


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in (*pictures.SUFFIXES, ".gif")


def _becomes_video(job: Job) -> bool:
    return job.source.suffix.lower() == ".gif" and job.target.suffix.lower() in VIDEO_SUFFIXES


def _is_media(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and path.is_file() and (_is_picture(path) or path.suffix.lower() in VIDEO_SUFFIXES)

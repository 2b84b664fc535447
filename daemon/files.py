"""What `deblurd enhance` does around each file: progress, summary, and going on after a failure.

Knows how outcomes are shown; restoring is `daemon.enhance`.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from engine.model import load_model

from .compare import Comparison
from .encoding import Encoding
from .enhance import Job, Outcome, Settings, enhance, expand
from .errors import DaemonError, SourceError
from .events import Events, beside_the_video
from .job import is_begun
from .preview import preview
from .segment_run import STOP_POLL_S
from .service import engine_from
from .settings import EngineConfig
from .strength import StrengthSetting
from .timespan import Timespan
from .video import how_to_go_on

T = TypeVar("T")


def enhance_files(
    inputs: list[Path],
    output: Path,
    config: EngineConfig,
    encoding: dict[str, Any],
    *,
    overwrite: bool,
    quiet: bool,
    stop: threading.Event,
    side_by_side: int = 1,
    strength: StrengthSetting = "auto",
    span: Timespan | None = None,
    comparison: Comparison | None = None,
    strict: bool = False,
    events: Events | None = None,
) -> bool:
    """Restore every input, so many `side_by_side`; True if all of them are whole.

    Of several, one whose output exists is passed over, and one that fails gets its line, and keeps the others from
    nothing. Errors that concern all of them are raised. `events` is told what becomes of each.
    """
    console = Console(stderr=True)
    jobs = expand(inputs, output)
    settings = Settings(
        Encoding(**encoding),
        overwrite=overwrite,
        model_sha256=_sha256_of(config.model),
        strength=strength,
        span=span,
        comparison=comparison,
        strict=strict,
    )
    counts: Counter[str] = Counter()
    with (
        engine_from(config) as engine,
        _progress(console, quiet) as progress,
        ThreadPoolExecutor(side_by_side, thread_name_prefix="file") as workers,
    ):

        def work(job: Job) -> Outcome | None:
            """None where there is nothing to do, or no time."""
            if stop.is_set():
                raise KeyboardInterrupt
            if len(jobs) > 1 and not overwrite and job.target.exists() and not is_begun(job.target):
                return None
            task = progress.add_task(escape(job.source.name), total=None)
            if events:
                events.started(job)

            def show(frames: int, expected: int | None) -> None:
                progress.update(task, completed=frames, total=expected)
                if events:
                    events.progress(job, frames, expected)

            try:
                return enhance(job, engine, settings, show, stop)
            finally:
                progress.remove_task(task)

        futures = {workers.submit(work, job): job for job in jobs}
        try:
            for future in _as_completed(futures):
                counts[_account(console, futures[future], future, quiet, events, alone=len(jobs) == 1)] += 1
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise
    if len(jobs) > 1 and not quiet:
        _print(console, _summary(counts))
    return not counts.keys() - {"done", "skipped"}


def preview_file(
    inputs: list[Path],
    output: Path,
    moments: int,
    config: EngineConfig,
    *,
    overwrite: bool,
    quiet: bool,
    stop: threading.Event,
    strength: StrengthSetting = "auto",
    span: Timespan | None = None,
    events: Events | None = None,
) -> bool:
    """Write a contact sheet of one file, and nothing else; False if it was stopped. Errors are raised."""
    if len(inputs) != 1 or inputs[0].is_dir():
        raise SourceError(f"a preview must be of one file, got {'a folder' if len(inputs) == 1 else len(inputs)}")
    console, job, began = Console(stderr=True), Job(inputs[0], output), time.monotonic()
    if events:
        events.started(job)
    try:
        with engine_from(config) as engine:
            times = preview(
                job.source,
                job.target,
                moments,
                engine,
                strength=strength,
                span=span,
                overwrite=overwrite,
                asked_to_stop=stop.is_set,
            )
    except KeyboardInterrupt:
        if events:
            events.finished(job, "stopped")
        return False
    seconds = time.monotonic() - began
    if events:
        events.finished(job, "done", Outcome(job, len(times), "done", (), (), seconds))
    if not quiet:
        _print(console, f"[green]done[/] {escape(f'{output}: {len(times)} moments in {seconds:.1f} s')}")
    return True


def _as_completed(futures: Iterable[Future[T]]) -> Iterator[Future[T]]:
    """Like that of `concurrent.futures`, which waits without end: a signal that another thread was given is handled
    only when this one wakes up, and Ctrl-C came to nothing until a file was done.
    """
    pending = set(futures)
    while pending:
        done, pending = wait(pending, STOP_POLL_S, FIRST_COMPLETED)
        yield from done


def _account(
    console: Console, job: Job, future: Future[Outcome | None], quiet: bool, events: Events | None, *, alone: bool
) -> str:
    """Say what became of a job; the word for it."""
    try:
        outcome = future.result()
    except KeyboardInterrupt:
        if events:
            events.finished(job, "stopped")
        if is_begun(job.target):
            _print(console, f"[yellow]stopped[/] {escape(f'{job.target}: {how_to_go_on(job.target)}')}")
        return "stopped"
    except DaemonError as error:
        if events:
            events.failed(error, job)
        if alone:
            raise
        _print(console, f"[bold red]failed[/] {escape(str(error))}")
        return "failed"
    if events:
        events.finished(job, outcome.status if outcome else "skipped", outcome)
    if outcome is None:
        if not quiet:
            _print(console, f"[yellow]skipped[/] {escape(f'{job.target}: it exists')}")
        return "skipped"
    _tell(console, job, outcome, quiet)
    return outcome.status


def _tell(console: Console, job: Job, outcome: Outcome, quiet: bool) -> None:
    for line in outcome.damage:
        _print(console, f"[bold red]lost[/] {escape(line)}")
    if quiet:
        return
    for line in outcome.warnings:
        _print(console, f"[yellow]note[/] {escape(line)}")
    fps = outcome.frames / outcome.seconds if outcome.seconds and not outcome.kept else 0.0
    rate = f" ({fps:.1f} fps)" if fps else ""
    kept = f", {outcome.kept} of {outcome.segments} segments from before" if outcome.kept else ""
    beside = "".join(f", with {' and '.join(found)}" for found in [beside_the_video(job.target)] if found)
    text = f"{job.target}: {outcome.frames} frames in {outcome.seconds:.1f} s{rate}{kept}{beside}"
    _print(console, f"[green]{outcome.status}[/] {escape(text)}")


def _summary(counts: Counter[str]) -> str:
    """`12 files: 9 done, 1 partial, 2 skipped`."""
    words = [f"{counts[word]} {word}" for word in ("done", "partial", "skipped", "failed", "stopped") if counts[word]]
    return f"{counts.total()} files: {', '.join(words)}"


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


def _sha256_of(model: str) -> str:
    """Of all files of a model together."""
    pinned = load_model(model).manifest.pinned()
    return hashlib.sha256(" ".join(f"{name} {file.sha256}" for name, file in pinned.items()).encode()).hexdigest()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} fps" if task.speed else "", style="progress.data.speed")


def _progress(console: Console, quiet: bool) -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True)

"""What `deblurd enhance` does around each file: progress, summary, and going on after a failure.

Knows how outcomes are shown; restoring is `daemon.enhance`.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

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

from .encoding import Encoding
from .enhance import Job, Outcome, Settings, enhance, expand
from .errors import DaemonError
from .service import engine_from
from .settings import EngineConfig


def enhance_files(
    inputs: list[Path],
    output: Path,
    config: EngineConfig,
    encoding: dict[str, Any],
    *,
    overwrite: bool,
    quiet: bool,
    stop: threading.Event,
) -> bool:
    """Restore every input, one after another; True if all of them are whole.

    A file that fails gets its line, and the next one has its turn. Errors that concern all of them are raised.
    """
    console = Console(stderr=True)
    jobs = expand(inputs, output)
    settings = Settings(encoding=Encoding(**encoding), overwrite=overwrite)
    whole = True
    with engine_from(config) as engine, _progress(console, quiet) as progress:
        for job in jobs:
            if stop.is_set():
                return False
            task = progress.add_task(escape(job.source.name), total=None)
            try:
                outcome = enhance(
                    job,
                    engine,
                    settings,
                    lambda frames, expected, task=task: progress.update(task, completed=frames, total=expected),  # type: ignore[misc]
                    stop,
                )
            except KeyboardInterrupt:
                return False
            except DaemonError as error:
                if len(jobs) == 1:
                    raise
                console.print(f"[bold red]failed[/] {escape(str(error))}", highlight=False, soft_wrap=True)
                whole = False
            else:
                progress.update(task, total=outcome.frames, completed=outcome.frames)
                _tell(console, job, outcome, quiet)
                whole = whole and outcome.status == "done"
            finally:
                progress.remove_task(task)
    return whole


def _tell(console: Console, job: Job, outcome: Outcome, quiet: bool) -> None:
    for line in outcome.damage:
        console.print(f"[bold red]lost[/] {escape(line)}", highlight=False, soft_wrap=True)
    if quiet:
        return
    for line in outcome.warnings:
        console.print(f"[yellow]note[/] {escape(line)}", highlight=False, soft_wrap=True)
    fps = outcome.frames / outcome.seconds if outcome.seconds else 0.0
    text = f"{job.target}: {outcome.frames} frames in {outcome.seconds:.1f} s ({fps:.1f} fps)"
    console.print(f"[green]{outcome.status}[/] {escape(text)}", highlight=False, soft_wrap=True)


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

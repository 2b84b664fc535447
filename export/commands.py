"""What `deblurd train` and `deblurd export` do: options in, progress and results on the terminal.

Knows how results are shown; the work is `export.train` and `export.package`.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .errors import ExportError
from .evaluate import development_pictures
from .package import Exported, export_model
from .train import TrainConfig
from .train import train as train_steps

log = logging.getLogger(__name__)


def train(
    values: dict[str, Any], data: list[Path], out: Path, *, device: str, quiet: bool, stop: threading.Event
) -> None:
    """Train with the defaults changed by `values`, showing the loss. ExportError for values that are impossible."""
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        rule = first["msg"].removeprefix("Value error, ").replace("Input should be ", "must be ")
        raise ExportError(f"'{name}' {rule}, got {first['input']!r}" if name else rule) from error
    columns = (
        TextColumn("loss {task.fields[loss]:.5f}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet) as progress:
        task: TaskID | None = None
        smooth = 0.0
        for step, loss in train_steps(config, data, out, device=device, stop=stop):
            if task is None:  # only now: refused data leaves no empty bar
                task, smooth = progress.add_task("train", total=config.steps, loss=loss), loss
            smooth += 0.01 * (loss - smooth)
            progress.update(task, completed=step, loss=smooth)
            if step % 1000 == 0 and not console.is_terminal:
                log.info("step %d of %d, loss %.5f", step, config.steps, smooth)
    if not quiet and not stop.is_set():
        console.print(f"trained: 'deblurd export {out} -o models --name NAME' makes a model of it", highlight=False)


def export(checkpoint: Path, output: Path, *, name: str, data: list[Path], licence: str, quiet: bool) -> None:
    """Export, and show how the export was proven and what the model gains."""
    pictures = development_pictures(data) if data else ()
    exported = export_model(checkpoint, output, name=name, pictures=pictures, licence=licence)
    if not quiet:
        Console().print(_summary(exported))


def _summary(exported: Exported) -> Table:
    table = Table(title=escape(str(exported.path)), title_justify="left", show_header=False)
    manifest = exported.manifest
    table.add_row("parameters", f"{manifest.parameters:,}")
    table.add_row("work", f"{manifest.mac_per_pixel * 1280 * 720 / 1e9:.2f} GMAC a 1280x720 frame")
    for proof in exported.proofs:
        table.add_row(
            f"{proof.precision} against checkpoint",
            f"{proof.psnr_db:.1f} dB, greatest error {proof.max_error} levels, {proof.frames} pictures",
        )
    for case, gain in manifest.gain_db.items():
        table.add_row(case, f"kept at {gain:.2f} dB" if case == "sharp" else f"{gain:+.2f} dB")
    return table

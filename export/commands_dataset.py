"""What `deblurd dataset prepare` does: options in, progress and a table of counts on the terminal.

Knows how counts are shown, and works without torch; the work is `export.dataset`.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from .dataset import DatasetConfig, Report
from .dataset import prepare as prepare_dataset
from .errors import ExportError, broken_rule

log = logging.getLogger(__name__)


def prepare(values: dict[str, Any], folders: list[Path], out: Path, *, quiet: bool) -> None:
    """Prepare with the defaults changed by `values`; ExportError for values that are impossible.

    A `split` may be a text such as `0.8,0.1,0.1`.
    """
    config = _config(values)
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True), disable=quiet
    )
    task = bar.add_task("files", total=None)
    with contextlib.ExitStack() as shown:

        def show(done: int, files: int) -> None:
            if not done:  # only now: a refusal leaves no empty bar
                shown.enter_context(bar)
            bar.update(task, completed=done, total=files)

        report = prepare_dataset(folders, out, config, progress=show)
    for drop in report.dropped:
        if drop.reason == "corrupt":
            log.warning("left out %s: %s", drop.source, drop.detail)
    if not quiet:
        Console().print(table(report, out))


def table(report: Report, out: Path) -> Table:
    """What was found, what was left out and why, and where the rest is."""
    result = Table(title=escape(str(out)), title_justify="left", show_header=False)
    result.add_column()
    result.add_column(justify="right")
    for name, number in report.counts().items():
        result.add_row(name, str(number))
    result.add_section()
    for split, origins in report.splits().items():
        result.add_row(
            f"{split} ({len(origins)} {'origin' if len(origins) == 1 else 'origins'})", str(sum(origins.values()))
        )
    return result


def _config(values: dict[str, Any]) -> DatasetConfig:
    given = dict(values)
    if isinstance(given.get("split"), str):
        parts = given["split"].split(",")
        with contextlib.suppress(ValueError):
            given["split"] = tuple(float(part) for part in parts)
    try:
        return DatasetConfig.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        if fault["loc"][:1] == ("split",):
            rule = "must be three shares such as 0.8,0.1,0.1"
            raise ExportError(f"'split' {rule}, got {values['split']!r}") from error
        raise ExportError(broken_rule(fault)) from error

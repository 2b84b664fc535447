"""What `deblurd train` and `deblurd export` do: options in, progress and results on the terminal.

Knows how results are shown; the work is `export.train` and `export.package`.
"""

from __future__ import annotations

import logging
import os
import shlex
import threading
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

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

from engine.model import shipped_models
from engine.protocol import EngineOptions

from .errors import ExportError
from .evaluate import development_pictures
from .material import Sources
from .package import Exported, Order, export_model, extend_model
from .recipes import configure
from .targets import Target, Task, calibration_pictures
from .train import train as train_steps

log = logging.getLogger(__name__)

LOG_EVERY_S = 30.0


def train(
    values: dict[str, Any],
    assignments: Sequence[str],
    sources: Sources,
    out: Path,
    *,
    device: str,
    workers: int | None,
    save_every_s: float,
    quiet: bool,
    stop: threading.Event,
) -> None:
    """Train with the defaults changed by `values` and by `KEY=VALUE` assignments, showing the losses."""
    config = configure(_merge(assignments, values))
    if os.environ.get("RANK", "0") != "0":  # torchrun's number of this process: only the first speaks
        quiet = True
        logging.getLogger().setLevel(logging.ERROR)
    columns = (
        TextColumn("{task.fields[losses]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task: TaskID | None = None
        smooth: dict[str, float] = {}
        shown_at = time.monotonic()
        steps = train_steps(config, sources, out, device=device, workers=workers, save_every_s=save_every_s, stop=stop)
        for step in steps:
            for name, loss in step.losses.items():
                smooth[name] = smooth.get(name, loss) + 0.02 * (loss - smooth.get(name, loss))
            line = " ".join(f"{name} {loss:.4f}" for name, loss in smooth.items())
            if task is None:  # only now: refused data leaves no empty bar
                task = progress.add_task("train", total=config.steps, losses=line)
            progress.update(task, completed=step.step, losses=line)
            if step.validation_db is not None:
                log.info("step %d: %s, validation %.2f dB", step.step, line, step.validation_db)
            elif not console.is_terminal and time.monotonic() - shown_at > LOG_EVERY_S:
                log.info("step %d of %d: %s", step.step, config.steps, line)
                shown_at = time.monotonic()
    if not quiet and not stop.is_set():
        run = escape(shlex.quote(str(out)))
        done = f"trained: 'deblurd export {run} -o models --name NAME' makes a model of it"
        console.print(done, highlight=False, soft_wrap=True)


def _merge(assignments: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """One tree of settings out of `a.b=value` lines, values as in TOML or else plain words, and ready values."""
    tree: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not all(key.split(".")):
            raise ExportError(f"settings must be KEY=VALUE, got {assignment!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        _put(tree, key, value)
    for key, value in values.items():
        _put(tree, key, value)
    return tree


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ExportError(f"{key!r} must be a group of settings or a value, got both")
    if last in tree:
        raise ExportError(f"{key!r} must be given once, got {tree[last]!r} and {value!r}")
    tree[last] = value


@dataclass(frozen=True)
class Wish:
    """What `deblurd export` was asked for, as it was typed; `targets` empty for the defaults, `tile` as HxW.

    engine: how the engine of `--target tensorrt` is built, and where it is kept.
    """

    output: Path
    name: str
    targets: tuple[str, ...] = ()
    data: tuple[Path, ...] = ()
    tile: str | None = None
    licence: str = ""
    engine: EngineOptions = field(default_factory=EngineOptions)


def export(source: Path, wish: Wish, *, quiet: bool) -> None:
    """Export a checkpoint or a model, and show how it was proven and what it gains."""
    tile = _tile(wish.tile)
    pictures = tuple(development_pictures(wish.data)) if wish.data else ()
    targets = cast(tuple[Target, ...], wish.targets) or None
    task = Task(targets, calibration_pictures(wish.data, pictures) if wish.data else (), wish.engine)
    order = Order(wish.output, wish.name, task, pictures, tile, wish.licence)
    known = source.suffix in (".json", ".onnx") or (str(source) in shipped_models() and not source.exists())
    exported = extend_model(str(source), order) if known else export_model(source, order)
    if not quiet:
        Console().print(_summary(exported))


def _tile(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ExportError(f"--tile must be HxW, as 544x960, got {text!r}")
    return int(height), int(width)


def _summary(exported: Exported) -> Table:
    table = Table(title=escape(str(exported.path)), title_justify="left", show_header=False)
    manifest = exported.manifest
    table.add_row("parameters", f"{manifest.parameters:,}")
    table.add_row("work", f"{manifest.mac_per_pixel * 1280 * 720 / 1e9:.2f} GMAC a 1280x720 frame")
    for proof in exported.proofs:
        table.add_row(
            f"{proof.precision} against checkpoint",
            f"{proof.psnr_db:.1f} dB, greatest error {proof.max_error} levels, {proof.frames} pictures,"
            f" {proof.backend}" + ("" if proof.holds else "; not used"),
        )
    for case, gain in manifest.gain_db.items():
        table.add_row(case, f"kept at {gain:.2f} dB" if case == "sharp" else f"{gain:+.2f} dB")
    return table

"""Checkpoints: safetensors for tensors, JSON for the rest; nothing is ever unpickled.

Knows names and tensors; nothing of what a network computes.

A run's folder holds `checkpoint-<step>/` folders, each written whole under another name and then renamed, so
that a full disk or a kill leaves the one before it untouched:

    weights.safetensors     the averaged weights, which are what is evaluated and exported
    training.safetensors    raw weights and optimizer moments, needed only to resume
    checkpoint.json         format, recipe, configuration, step, data
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import ExportError

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder, read: `info` is checkpoint.json."""

    folder: Path
    info: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        return _load(self.folder / "weights.safetensors")

    def training(self) -> dict[str, Tensor]:
        return _load(self.folder / "training.safetensors")


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path}: not a readable safetensors file ({error})") from error


def save(run: Path, info: dict[str, Any], weights: dict[str, Tensor], training: dict[str, Tensor]) -> Path:
    """Write `run/checkpoint-<step>` and remove the older ones; ExportError when the disk refuses."""
    final = run / f"checkpoint-{info['step']:07d}"
    partial = run / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(weights, partial / "weights.safetensors")
        save_file(training, partial / "training.safetensors")
        (partial / "checkpoint.json").write_text(json.dumps({"format": FORMAT, **info}, indent=2), encoding="utf-8")
        if final.exists():  # the same step again: a run that was resumed and saved at once
            shutil.rmtree(final)
        partial.replace(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ExportError(f"{final}: the checkpoint cannot be written ({error}); the one before it stands") from error
    for older in run.glob("checkpoint-*"):
        if older.name < final.name:
            shutil.rmtree(older, ignore_errors=True)
    return final


def find(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the newest one of the run at `path`."""
    folders = [path] if (path / "checkpoint.json").is_file() else sorted(path.glob("checkpoint-*/checkpoint.json"))
    if not folders:
        raise ExportError(f"{path}: neither a checkpoint nor a run with one (checkpoint.json not found)")
    folder = folders[-1] if folders[-1].is_dir() else folders[-1].parent
    try:
        info = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{folder / 'checkpoint.json'}: not readable ({error})") from error
    found = info.get("format") if isinstance(info, dict) else None
    if found != FORMAT:
        raise ExportError(f"{folder}: checkpoint format must be {FORMAT}, got {found!r}")
    missing = sorted({"recipe", "config", "step", "data"} - set(info))
    if missing:
        raise ExportError(f"{folder / 'checkpoint.json'}: {missing[0]!r} is missing")
    return Checkpoint(folder, info)

"""Checkpoints: safetensors for tensors, JSON for the rest; nothing is ever unpickled.

Knows names and tensors; nothing of what a network computes.

A run's folder holds `checkpoint-<step>/` folders, each written whole under another name and then renamed, so
that a full disk or a kill leaves the one before it untouched:

    weights.safetensors     the averaged weights, which are what is evaluated and exported
    training.safetensors    raw weights and optimizer moments, needed only to resume
    checkpoint.json         format, recipe, configuration, step, data

The one that did best in validation lies in `best/`, without what is needed to resume.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import ExportError

FORMAT = 1
BEST = "best"


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
    for name, tensor in (weights | training).items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ExportError(f"{final}: tensors must be finite, {name} is not; the checkpoint before it stands")
    _write(final, info, {"weights": weights, "training": training})
    for older in _checkpoints(run)[:-1]:
        shutil.rmtree(older, ignore_errors=True)
    return final


def save_best(run: Path, info: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Write `run/best`; ExportError when the disk refuses. `info` says how it did: `validation`, with `psnr_db`."""
    _write(run / BEST, info, {"weights": weights})


def _write(final: Path, info: dict[str, Any], files: dict[str, dict[str, Tensor]]) -> None:
    partial, old = (final.with_name(f".{final.name}.{state}") for state in ("partial", "old"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, tensors in files.items():
            save_file(tensors, partial / f"{name}.safetensors")
        (partial / "checkpoint.json").write_text(json.dumps({"format": FORMAT, **info}, indent=2), encoding="utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():  # a folder cannot be replaced in one step
            final.replace(old)
        partial.replace(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not final.exists():
            old.replace(final)
        raise ExportError(f"{final}: the checkpoint cannot be written ({error}); the one before it stands") from error
    shutil.rmtree(old, ignore_errors=True)


def tidy(run: Path) -> None:
    """Clear away what a kill in the middle of writing left in `run`; a checkpoint being replaced comes back."""
    for old in run.glob(".*.old"):
        final = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.replace(final)
    for partial in run.glob(".*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def find_validated(run: Path) -> Checkpoint | None:
    """The best checkpoint of `run`, with its `validation`; None if there is none."""
    if not (run / BEST).is_dir():
        return None
    best = find(run / BEST)
    validation = best.info.get("validation")
    if not isinstance(validation, dict) or not isinstance(validation.get("psnr_db"), float):
        raise ExportError(f"{best.folder / 'checkpoint.json'}: 'validation' must hold a number 'psnr_db'")
    return best


def remove_best(run: Path) -> None:
    """Forget which checkpoint of `run` did best."""
    shutil.rmtree(run / BEST, ignore_errors=True)


def holds_one(run: Path) -> bool:
    """Whether `run` has a checkpoint to go on from."""
    return bool(_checkpoints(run))


def _checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of `run`, by step."""
    numbered = [path for path in run.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
    return sorted(numbered, key=lambda path: int(path.name.partition("-")[2]))


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def find_best(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the best one of the run at `path`; the newest one if none was validated."""
    return find(path / BEST if (path / BEST).is_dir() else path)


def find(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the newest one of the run at `path`."""
    folders = [path] if (path / "checkpoint.json").is_file() else _checkpoints(path)
    if not folders:
        raise ExportError(f"{path}: neither a checkpoint nor a run with one (checkpoint.json not found)")
    folder = folders[-1]
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
    for key in ("config", "data"):
        if not isinstance(info[key], dict):
            raise ExportError(f"{folder / 'checkpoint.json'}: {key!r} must be a table, got {info[key]!r}")
    if not isinstance(info["step"], int) or info["step"] < 0:
        raise ExportError(f"{folder / 'checkpoint.json'}: 'step' must be a whole number from 0, got {info['step']!r}")
    return Checkpoint(folder, info)

"""Train a recipe in a folder of its own: save, validate, keep the best; stop and resume anywhere.

Knows the loop and the run's folder; what a step learns is `export.recipes`, from what is `export.material`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from . import checkpoint
from .errors import ExportError, InterruptedByUserError
from .journal import Journal
from .material import Material, Pairs, Sources
from .recipes import RECIPES
from .recipes.config import TrainConfig
from .trainer import Trainer, accelerator_for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What a step gave: its number, from 1, its losses by name, and the validation's PSNR in dB if there was one."""

    step: int
    losses: dict[str, float]
    validation_db: float | None = None


class _Run:
    """The folder of a run: where it stands, and which checkpoint did best."""

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        self._folder, self._trainer = folder, trainer
        self._first = trainer.accelerator.is_main_process
        self._saved_step = -1
        self._best_db: float | None = None
        self.facts: dict[str, Any] = {}
        """Of the material, for the checkpoints."""

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        if self._first:
            checkpoint.tidy(self._folder)
        self._trainer.accelerator.wait_for_everyone()
        if not checkpoint.holds_one(self._folder):
            return
        saved = checkpoint.find(self._folder)
        trainer = self._trainer
        trainer.resume(saved)
        self._saved_step = trainer.step
        log.info("resumed at step %d", trainer.step)
        own = trainer.info({})["config"]
        changed = [key for key, value in own.items() if saved.info["config"].get(key) != value]
        if changed:
            log.warning("from here on with other settings than before: %s", ", ".join(changed))
        if trainer.step >= trainer.config.steps:
            log.warning("nothing to learn: at step %d already, 'steps' is %d", trainer.step, trainer.config.steps)

    def compare_with_best(self, validation_id: str) -> None:
        """Keep the best checkpoint so far if it was measured on the same pairs, and belongs to what goes on."""
        self.facts["validation_id"] = validation_id
        best = checkpoint.find_validated(self._folder) if self._saved_step >= 0 else None
        if best is not None and best.info["data"].get("validation_id") == validation_id:
            self._best_db = float(best.info["validation"]["psnr_db"])
        else:
            checkpoint.remove_best(self._folder)

    def save(self) -> None:
        """Write a checkpoint, unless this step has one; all processes must call it together."""
        if self._saved_step == self._trainer.step or not self._trainer.step:
            return
        state = self._trainer.state()
        if self._first:
            info = self._trainer.info(self.facts)
            checkpoint.save(self._folder, info, self._trainer.weights(), state)
        self._trainer.accelerator.wait_for_everyone()
        self._saved_step = self._trainer.step

    def validate(self, pairs: Pairs, journal: Journal) -> float:
        """Measure, write it down, and keep the checkpoint if it is the best; returns the PSNR in dB."""
        trainer = self._trainer
        psnr_db, samples = trainer.validate(pairs)
        journal.validated(trainer.step, psnr_db, samples)
        if self._best_db is None or psnr_db > self._best_db:
            self._best_db = psnr_db
            info = trainer.info(self.facts) | {"validation": {"psnr_db": psnr_db}}
            checkpoint.save_best(self._folder, info, trainer.weights())
        return psnr_db


def train(
    config: TrainConfig,
    sources: Sources,
    folder: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    save_every_s: float = 120.0,
    stop: threading.Event | None = None,
) -> Iterator[Progress]:
    """Train until `config.steps`, yielding every step; goes on from the newest checkpoint of `folder` if any.

    Saves and ends early when `stop` is set. Under `torchrun` all processes share each batch. The best checkpoint
    by validation is kept beside the newest. Raises ExportError for settings or data that cannot serve.
    """
    stop = stop or threading.Event()
    accelerator = accelerator_for(config, device)
    if config.batch % accelerator.num_processes:
        raise ExportError(
            f"'batch' must be a multiple of the number of processes {accelerator.num_processes}, got {config.batch}"
        )
    first = accelerator.is_main_process
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, accelerator)
    run = _Run(folder, trainer)
    run.resume()
    material = Material(folder, config, paired=RECIPES[config.recipe].paired)
    if first:
        with contextlib.suppress(InterruptedByUserError):
            run.facts = material.build(sources, stop)
    if _agreed(accelerator, stop.is_set()):  # here, too, processes wait for the first
        return
    pairs, validation = material.training(made_blur=not sources.blurred), material.validation()
    if first:
        run.compare_with_best(material.validation_id())
    saved_at = time.monotonic()
    with Journal(folder, trainer.step, enabled=first) as journal:
        for blurred, sharp in loader_for(pairs, config, accelerator, trainer.step, workers):
            if _agreed(accelerator, stop.is_set()):
                run.save()
                return
            losses = trainer.learn(blurred, sharp)
            if not all(math.isfinite(loss) for loss in losses.values()):
                raise ExportError(f"losses must stay finite, got {losses} at step {trainer.step}; try a lower rate")
            last = trainer.step == config.steps
            due = last or trainer.step % config.validate_every == 0
            validation_db = run.validate(validation, journal) if first and due and validation is not None else None
            journal.learnt(trainer.step, losses, config.learning_rate * config.rate(trainer.step - 1))
            if _agreed(accelerator, last or time.monotonic() - saved_at > save_every_s):
                run.save()
                saved_at = time.monotonic()
            yield Progress(trainer.step, losses, validation_db)


def loader_for(
    pairs: Pairs, config: TrainConfig, accelerator: Accelerator, step: int, workers: int | None = None
) -> DataLoader[tuple[Tensor, Tensor]]:
    """The batches from `step` on, of each this process's share: item numbers depend on nothing else.

    workers: processes that make the pairs; None for as many as suit the device.
    """
    share = config.batch // accelerator.num_processes
    if workers is None:  # a processor that trains needs its cores itself
        workers = max(1, (os.cpu_count() or 1) // accelerator.num_processes) if accelerator.device.type == "cuda" else 1
    return DataLoader(
        pairs,
        batch_sampler=_Batches(step, config.steps, config.batch, accelerator.process_index * share, share),  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=_start_worker,
        prefetch_factor=8 if workers else None,
        pin_memory=accelerator.device.type == "cuda",
    )


def _start_worker(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the run's own decides
    cv2.setNumThreads(1)  # a loader process must not fight the training step for cores
    torch.set_num_threads(1)


@dataclass(frozen=True)
class _Batches:
    """The numbers of the items in each batch: of every `batch` of them `share`, from the place `first` on."""

    begin: int
    end: int
    batch: int
    first: int
    share: int

    def __len__(self) -> int:
        return max(0, self.end - self.begin)

    def __iter__(self) -> Iterator[range]:
        for step in range(self.begin, self.end):
            start = step * self.batch + self.first
            yield range(start, start + self.share)


def _agreed(accelerator: Accelerator, wish: bool) -> bool:
    """Whether any process wishes it: they must all save, or stop, at the same step."""
    if accelerator.num_processes == 1:
        return wish
    return bool(accelerator.reduce(torch.tensor(float(wish), device=accelerator.device)) > 0)

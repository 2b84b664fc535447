"""What a run did, for TensorBoard: losses, rates and validation, with pictures.

Knows numbers and pictures; nothing of how they came about.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from .blur import Picture

EVERY_STEPS = 20
"""Losses are written as means over so many steps."""


class Journal:
    """Writes below `run/tensorboard`; of a run that goes on, what lay beyond its step is struck out."""

    def __init__(self, run: Path, step: int, *, enabled: bool = True) -> None:
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1) if enabled else None
        self._sums: dict[str, list[float]] = {}
        self._since = time.monotonic()
        self._from = step

    def learnt(self, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """A step has been made."""
        if self._writer is None:
            return
        for name, loss in losses.items():
            self._sums.setdefault(name, []).append(loss)
        if step % EVERY_STEPS:
            return
        for name, values in self._sums.items():
            self._writer.add_scalar(f"train/{name}", np.mean(values), step)
        now = time.monotonic()
        self._writer.add_scalar("train/learning_rate", learning_rate, step)
        self._writer.add_scalar("train/steps_per_s", (step - self._from) / (now - self._since), step)
        self._sums.clear()
        self._since, self._from = now, step

    def validated(self, step: int, psnr_db: float, samples: Sequence[Picture]) -> None:
        """The run was measured; `samples` are rows of pictures, (H, W, 3) each: blurred, restored, sharp."""
        if self._writer is not None:
            self._writer.add_scalar("validation/psnr_db", psnr_db, step)
            self._writer.add_image("validation/blurred_restored_sharp", np.vstack(samples), step, dataformats="HWC")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

"""What a run did, for TensorBoard: losses, rates and validation, with pictures.

Knows numbers and pictures; nothing of how they came about.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from .blur import Picture
from .errors import ExportError

EVERY_STEPS = 20
"""Losses are written as means over so many steps."""


class Journal:
    """Writes below `run/tensorboard`; of a run that goes on, what lay beyond its step is struck out.

    ExportError where the disk refuses. Not torch's SummaryWriter: its thread would say so by a traceback.
    """

    def __init__(self, run: Path, step: int, *, enabled: bool = True) -> None:
        self._folder = run / "tensorboard"
        self._sums: dict[str, list[float]] = {}
        self._since, self._from = time.monotonic(), step
        self._records: RecordWriter | None = None
        if not enabled:
            return
        try:
            self._folder.mkdir(exist_ok=True)
            name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
            self._records = RecordWriter((self._folder / name).open("wb"))
        except OSError as error:
            raise self._unwritable(error) from error
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def learnt(self, step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """A step has been made."""
        for name, loss in losses.items():
            self._sums.setdefault(name, []).append(loss)
        if step % EVERY_STEPS:
            return
        now = time.monotonic()
        scalars = {name: float(np.mean(values)) for name, values in self._sums.items()}
        scalars |= {"learning_rate": learning_rate, "steps_per_s": (step - self._from) / (now - self._since)}
        for name, value in scalars.items():
            self._write(step=step, summary=summary.scalar(f"train/{name}", value))  # type: ignore[no-untyped-call]
        self._sums.clear()
        self._since, self._from = now, step

    def validated(self, step: int, psnr_db: float, samples: Sequence[Picture]) -> None:
        """The run was measured; `samples` are rows of pictures, (H, W, 3) each: blurred, restored, sharp."""
        self._write(step=step, summary=summary.scalar("validation/psnr_db", psnr_db))  # type: ignore[no-untyped-call]
        rows = np.vstack(samples)
        self._write(step=step, summary=summary.image("validation/blurred_restored_sharp", rows, dataformats="HWC"))  # type: ignore[no-untyped-call]

    def _write(self, **event: Any) -> None:
        if self._records is None:
            return
        try:
            self._records.write(Event(wall_time=time.time(), **event).SerializeToString())
            self._records.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ExportError:
        return ExportError(f"{self._folder}: not writable ({error.strerror})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._records is not None:
            self._records.close()

"""An engine whose every batch takes a fixed time and no processor, as a GPU's would: what is left is the daemon.

Knows no network and no back-end; it gives back what it is given.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from engine.protocol import EngineSpec, Frames, Result, State, Ticket
from engine.slots import Slots


class FixedEngine:
    """One device: a batch of n frames takes `base_s` + n * `per_frame_s`, and batches run one after another.

    slots: batches that may be in flight; all but one of them wait for the device.
    best_batch: greatest n.
    """

    def __init__(self, base_s: float, per_frame_s: float = 0.0, *, slots: int = 2, best_batch: int = 1) -> None:
        self.spec = EngineSpec(
            model="fixed",
            backend="fixed",
            stride=16,
            tile=(4096, 4096),
            fixed_tile=False,
            overlap_px=0,
            max_batch=best_batch,
            best_batch=best_batch,
            slots=slots,
            recurrent=False,
        )
        self._base_s, self._per_frame_s = base_s, per_frame_s
        self._slots = Slots(range(slots))
        self._free_at = 0.0
        self._lock = threading.Lock()

    def seconds(self, frames: int) -> float:
        """How long a batch of so many frames takes."""
        return self._base_s + frames * self._per_frame_s

    def submit(self, batch: Frames, states: Sequence[State | None] | None = None) -> Ticket:
        slot = self._slots.take()
        with self._lock:
            self._free_at = max(self._free_at, time.perf_counter()) + self.seconds(len(batch))
            return _Due(self._free_at, Result(batch, states or [None] * len(batch), lambda: self._slots.give(slot)))

    def close(self) -> None:
        self._slots.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class _Due:
    at: float
    outcome: Result

    def result(self) -> Result:
        time.sleep(max(0.0, self.at - time.perf_counter()))
        return self.outcome

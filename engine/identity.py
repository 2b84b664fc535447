"""The engine that changes nothing: for dry runs, and to measure everything around an engine.

Knows no model: it takes the stride and overlap of the one it stands in for, and leaves its network out.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from .model import Model
from .protocol import EngineOptions, EngineSpec, Frames, Levels, Result, State, Ticket, check_batch, is_floating
from .slots import Slots

if TYPE_CHECKING:
    from typing import Self


class _Done:
    """A ticket whose result is there from the start."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def result(self) -> Result:
        return self._result


class IdentityEngine:
    """Returns each batch as it came, without a copy, and of levels a residual of nothing; states come back as given."""

    def __init__(self, model: Model, options: EngineOptions) -> None:
        manifest = model.manifest
        self.spec = EngineSpec(
            model="identity",
            backend="identity",
            stride=manifest.stride,
            tile=manifest.tile(options.tile_px),
            fixed_tile=manifest.fixed_tile is not None,
            overlap_px=manifest.overlap_px,
            max_batch=4,
            best_batch=4,
            slots=options.slots,
            recurrent=bool(manifest.states),
            whole_frame=manifest.whole_frame,
            concurrent=options.slots,
            floating=True,
        )
        self._slots = Slots(range(options.slots))

    def submit(self, batch: Frames | Levels, states: Sequence[State | None] | None = None) -> Ticket:
        check_batch(self.spec, batch, states)
        frames = np.zeros_like(batch) if is_floating(batch) else batch
        slot = self._slots.take()
        return _Done(Result(frames, tuple(states or [None] * len(batch)), lambda: self._slots.give(slot)))

    def close(self) -> None:
        self._slots.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

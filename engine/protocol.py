"""What an engine is: one batch of frames in, one batch out, several in flight.

Knows no video, no sockets and no back-end; every back-end implements `Engine`, everybody else uses only it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import EngineError

if TYPE_CHECKING:
    from typing import Self  # Python 3.10, where TensorRT 8.6 lives, has none

Frames = NDArray[np.uint8]
"""A batch of RGB frames, (N, H, W, 3)."""

Levels = NDArray[np.float32]
"""A batch of RGB frames in levels of 0 to 255, (N, H, W, 3): what is finer than 8 bits is in the fractions."""

State = object
"""The hidden state of one batch item after a frame: an opaque handle, which may live on a device.

A recurrent model takes the handles that the frame before returned. `None` starts a history afresh."""

Sizes = tuple[tuple[int, int], ...]
"""Tile sizes, (H, W) each."""

Build = Literal["background", "wait"]


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs.

    device: the back-end's own device name, e.g. `CPU` or `cuda:1`; `auto` is the best that it has.
    precision: `auto` takes the fastest that the device has and the model allows; a name of
        `engine.model.Precision` insists.
    slots: batches in flight.
    tile_px: greatest side of a tile; larger frames are cut, unless the model needs them whole.
    goal: `latency` gives all cores to one frame, `throughput` a core each to several.
    sizes: tile sizes (H, W) to be fastest at; the others run too.
    cache: folder in which compiled engines are kept for the next start; None keeps none.
    build: what happens while an engine is built for this machine: `background` serves with another one and swaps
        when it is ready, also for tile sizes that come later; `wait` opens when it is done, and never swaps.
    """

    device: str = "auto"
    precision: str = "auto"
    slots: int = 2
    tile_px: int = 2048
    goal: str = "latency"
    sizes: Sizes = ()
    cache: Path | None = None
    build: Build = "wait"


@dataclass(frozen=True)
class EngineSpec:
    """What a loaded engine takes.

    model: id of the model, e.g. `fast`.
    backend: name of the back-end, and after a slash what it runs on, e.g. `openvino/CPU bf16`.
    stride: H and W of a batch must be multiples of this.
    tile: greatest (H, W) of a batch. With `fixed_tile`, the only one.
    overlap_px: how far a pixel's neighbourhood reaches; tiles overlap by at least this.
    max_batch: greatest N.
    best_batch: the N beyond which a larger batch gains nothing here.
    slots: batches that may be in flight; one more `submit` waits.
    recurrent: whether states are taken and given.
    whole_frame: whether a frame must come in one piece: tiles would not be restored as it would be.
    sizes: tile sizes (H, W), besides `tile`, that it was built to be fastest at; None: it is as good at all others.
    concurrent: batches that are computed at once; those in further slots wait, all but for their transfers.
    floating: whether batches may be `Levels`. What serves them is made when the first comes, which may take a while.
    """

    model: str
    backend: str
    stride: int
    tile: tuple[int, int]
    fixed_tile: bool
    overlap_px: int
    max_batch: int
    best_batch: int
    slots: int
    recurrent: bool
    whole_frame: bool = False
    sizes: Sizes | None = None
    concurrent: int = 1
    floating: bool = False


class Result:
    """What a batch gave. The slot's buffers are lent: `frames` is valid until `release`, or the end of `with`.

    frames: (N, H, W, 3) as submitted: of `Frames`, the restored ones, uint8 RGB. Of `Levels`, what is to be added to
        them, in levels, float32; neither rounded nor clipped.
    states: one handle per batch item; of a model without history, None each. Handles outlive the release.
    """

    def __init__(self, frames: NDArray[Any], states: Sequence[State | None], release: Callable[[], None]) -> None:
        self.frames = frames
        self.states = states
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Give the slot back; later calls do nothing."""
        release, self._release = self._release, None
        if release:
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


class Ticket(Protocol):
    """A batch in flight."""

    def result(self) -> Result:
        """Wait for the batch. Raises EngineError if it failed; then the slot is free again."""


class Engine(Protocol):
    """A loaded model on a back-end. Threads may share it; `submit` keeps no order among them."""

    @property
    def spec(self) -> EngineSpec: ...

    def submit(self, batch: Frames | Levels, states: Sequence[State | None] | None = None) -> Ticket:
        """Start a batch; waits while all slots are taken.

        The caller must leave `batch` unchanged until the ticket's result is there. `states` gives one handle
        per item; None starts them all afresh. Those that came of `Frames` serve `Frames`, and those of `Levels`
        `Levels`. Raises EngineError for a batch that the spec forbids, and
        after `close`.
        """

    def close(self) -> None:
        """Wait for what is in flight, then free everything. A waiting `submit` raises EngineError."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


def is_floating(batch: Frames | Levels) -> bool:
    """Whether a batch is one of `Levels`."""
    return batch.dtype == np.float32


def check_batch(spec: EngineSpec, batch: Frames | Levels, states: Sequence[State | None] | None) -> None:
    """Refuse a batch that `spec` forbids; every back-end calls it first."""
    known = batch.dtype == np.uint8 or (spec.floating and is_floating(batch))
    if not known or batch.ndim != 4 or batch.shape[3] != 3:
        types = "uint8 or float32" if spec.floating else "uint8"
        raise EngineError(f"a batch must be {types} (N, H, W, 3), got {batch.dtype} {batch.shape}")
    count, height, width, _ = batch.shape
    if not 1 <= count <= spec.max_batch:
        raise EngineError(f"a batch must hold 1 to {spec.max_batch} frames, got {count}")
    if height % spec.stride or width % spec.stride or not height or not width:
        raise EngineError(f"height and width must be multiples of {spec.stride}, got {height}x{width}")
    if height > spec.tile[0] or width > spec.tile[1] or (spec.fixed_tile and (height, width) != spec.tile):
        rule = "exactly" if spec.fixed_tile else "at most"
        raise EngineError(f"a tile must be {rule} {spec.tile[0]}x{spec.tile[1]}, got {height}x{width}")
    if states is not None and len(states) != count:
        raise EngineError(f"states must be one per frame ({count}), got {len(states)}")

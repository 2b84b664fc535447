"""One stream's way through the model: frames to tiles, tiles to frames, and the history between frames.

Knows the engine's spec; nothing of threads, slots or where frames come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.protocol import EngineSpec, State

from .errors import DaemonError
from .frame import Frame
from .tiles import TilePlan, Tiles

SCENE_CUT_LEVELS = 40.0
"""Mean difference between neighbouring thumbnails, in levels of 255, from which a new scene is assumed."""

Thumbnail = NDArray[np.uint8]


@dataclass(frozen=True)
class Prepared:
    """A frame ready for the engine: its tiles, and one history handle for each (None: starts afresh)."""

    frame: Frame
    plan: TilePlan
    tiles: Tiles
    states: tuple[State | None, ...]


class Restorer:
    """Prepares the frames of one stream; of a recurrent model, holds the history of every tile.

    The history starts afresh at a scene cut, a reconnect and a change of size. With a recurrent model, a
    frame may be prepared only after the one before it was given to `remember`.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._plan: TilePlan | None = None
        self._size = (0, 0)
        self._epoch = 0
        self._states: tuple[State | None, ...] = ()
        self._thumbnail: Thumbnail | None = None

    def prepare(self, frame: Frame) -> Prepared:
        """Cut `frame` into tiles. 16-bit pixels are cut to 8 bits: engines take those.

        DaemonError for a frame that would have to be cut for a model that needs it whole.
        """
        pixels = frame.pixels
        if pixels.dtype != np.uint8:
            pixels = np.right_shift(pixels, 8).astype(np.uint8)
        size = (frame.height, frame.width)
        if self._plan is None or size != self._size:
            self._plan = TilePlan.for_frame(
                *size,
                stride=self._spec.stride,
                limit=self._spec.tile,
                fixed=self._spec.fixed_tile,
                overlap=self._spec.overlap_px,
            )
            if self._spec.whole_frame and self._plan.count > 1:
                self._plan = None
                limit = self._spec.tile
                raise DaemonError(
                    f"frames must be at most {limit[1]}x{limit[0]} for model {self._spec.model!r}, which takes them"
                    f" whole, got {size[1]}x{size[0]}"
                )
        if (size, frame.epoch) != (self._size, self._epoch):
            self._size, self._epoch, self._thumbnail = size, frame.epoch, None
            self._states = (None,) * self._plan.count
        if self._spec.recurrent and self._is_cut(pixels):  # type: ignore[arg-type]
            self._states = (None,) * self._plan.count
        return Prepared(frame, self._plan, self._plan.split(pixels), self._states)  # type: ignore[arg-type]

    def remember(self, states: Sequence[State | None]) -> None:
        """Keep what the engine gave for every tile of the frame prepared last."""
        self._states = tuple(states)

    def _is_cut(self, pixels: NDArray[np.uint8]) -> bool:
        thumbnail = np.asarray(cv2.resize(pixels, (32, 18), interpolation=cv2.INTER_AREA), np.uint8)
        before, self._thumbnail = self._thumbnail, thumbnail
        return before is not None and float(cv2.absdiff(before, thumbnail).mean()) > SCENE_CUT_LEVELS

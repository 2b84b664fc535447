"""One stream's way through the model: frames to tiles, tiles to frames, and the history between frames.

Knows the engine's spec; nothing of threads, slots or where frames come from.

A frame of more than 8 bits goes to the engine in levels, 255 of which are white, and what the engine would change is
added to the frame as it came. An engine that takes bytes alone is given the frame in bytes; what it changes of these is
added all the same, so that the further bits stay.

How much of what the engine changes is let through is each frame's strength: the same for all, or as its blur asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.protocol import EngineSpec, State

from .blend import AnyMerger, Untouched, Weakened
from .errors import DaemonError
from .frame import Frame, Pixels
from .hdr import Curve, curve_of
from .sharpness import blur_sigma
from .strength import Strength, StrengthSetting
from .tiles import TilePlan, Tiles

SCENE_CUT_LEVELS = 40.0
"""Mean difference between neighbouring thumbnails, in levels of 255, from which a new scene is assumed."""

LEVEL: Final = 257
"""A level of 255 in 16 bits."""

Thumbnail = NDArray[Any]


@dataclass(frozen=True)
class Prepared:
    """A frame ready for the engine: its tiles, and one history handle for each (None: starts afresh).

    cut: of a frame of more than 8 bits, what was cut into bytes, for an engine that takes no levels.
    strength: the share of the engine's change that is let through, 0 to 1.
    blur_px: the frame's blur, where it was measured and could be told.
    """

    frame: Frame
    plan: TilePlan
    tiles: Tiles
    states: tuple[State | None, ...]
    cut: NDArray[np.uint8] | None = None
    strength: float = 1.0
    blur_px: float | None = None

    def merger(self, out: Pixels) -> AnyMerger:
        """Start putting what the engine gives for the tiles together in `out` (H, W, 3), of the frame's type."""
        if self.strength == 0:
            return Untouched(self.frame.pixels, out)
        whole = self._whole(out)
        return whole if self.strength == 1 else Weakened(whole, self.plan.count, self.frame.pixels, self.strength)

    def _whole(self, out: Pixels) -> AnyMerger:
        if out.dtype == np.uint8:
            return self.plan.merger(out)
        curve = curve_of(self.frame.colour.transfer)
        return DeepMerger(self.plan, self.frame.pixels, out, self.cut, curve)


class DeepMerger:
    """A frame of 16 bits being put together: the frame as it came, and what the engine changed, rounded once."""

    def __init__(
        self, plan: TilePlan, pixels: Pixels, out: Pixels, cut: NDArray[np.uint8] | None, curve: Curve | None
    ) -> None:
        self.out = out
        self._curve = curve
        self._pixels, self._cut, self._missing = pixels, cut, plan.count
        self._merger = plan.merger(np.empty(pixels.shape, np.float32 if cut is None else np.uint8))

    def add(self, index: int, tile: NDArray[Any]) -> None:
        """Blend in what the engine gave for tile `index` of the plan: a residual, or a restored tile in bytes."""
        self._merger.add(index, tile)
        self._missing -= 1
        if not self._missing:
            change, unit = self._merger.out, LEVEL
            if self._cut is not None:
                change = np.asarray(cv2.subtract(change, self._cut, dtype=cv2.CV_32F))
            elif self._curve:
                change, unit = self._curve.change(self._pixels, change), 1
            # Rounds, and stops at black and white.
            cv2.addWeighted(self._pixels, 1, change, unit, 0, dst=self.out, dtype=cv2.CV_16U)


class Restorer:
    """Prepares the frames of one stream; of a recurrent model, holds the history of every tile.

    The history starts afresh at a scene cut, a reconnect and a change of size. With a recurrent model, a
    frame may be prepared only after the one before it was given to `remember`.
    """

    def __init__(self, spec: EngineSpec, strength: StrengthSetting = 1.0) -> None:
        self._spec, self._strength = spec, strength
        self._following = Strength()
        self._plan: TilePlan | None = None
        self._size = (0, 0)
        self._kind: tuple[Any, int] = (np.dtype(np.uint8), 0)
        self._states: tuple[State | None, ...] = ()
        self._thumbnail: Thumbnail | None = None

    def prepare(self, frame: Frame) -> Prepared:
        """Cut `frame` into tiles: of floats for 16-bit pixels, where the engine takes those.

        DaemonError for a frame that would have to be cut for a model that needs it whole.
        """
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
        pixels, cut = self._levels(frame)
        kind = (pixels.dtype, frame.epoch)
        afresh = (size, kind) != (self._size, self._kind)
        if afresh:
            self._size, self._kind, self._thumbnail = size, kind, None
        if self._spec.recurrent or self._strength == "auto":
            afresh = self._is_cut(pixels) or afresh
        if afresh:
            self._states = (None,) * self._plan.count
        strength, blur_px = self._strength_of(frame, afresh)
        return Prepared(frame, self._plan, self._plan.split(pixels), self._states, cut, strength, blur_px)

    def _strength_of(self, frame: Frame, afresh: bool) -> tuple[float, float | None]:
        """The share of the change to let through; the blur by which it was chosen, if it was."""
        if self._strength != "auto":
            return self._strength, None
        blur_px = blur_sigma(frame.pixels)
        return self._following.follow(blur_px, frame.time_s, afresh=afresh), blur_px

    def _levels(self, frame: Frame) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """What the engine takes of the pixels; and the same if it is less than they hold."""
        pixels = frame.pixels
        if pixels.dtype == np.uint8:
            return pixels, None
        if self._spec.floating and (curve := curve_of(frame.colour.transfer)):
            return curve.levels(pixels), None
        if self._spec.floating:
            return np.multiply(pixels, np.float32(1 / LEVEL), dtype=np.float32), None
        cut = np.asarray(cv2.convertScaleAbs(pixels, alpha=1 / LEVEL), np.uint8)
        return cut, cut

    def remember(self, states: Sequence[State | None]) -> None:
        """Keep what the engine gave for every tile of the frame prepared last."""
        self._states = tuple(states)

    def _is_cut(self, pixels: NDArray[Any]) -> bool:
        step = max(1, min(pixels.shape[0] // 72, pixels.shape[1] // 128))  # all pixels would take as long as the blur
        thumbnail = np.asarray(cv2.resize(pixels[::step, ::step], (32, 18), interpolation=cv2.INTER_AREA))
        before, self._thumbnail = self._thumbnail, thumbnail
        return before is not None and float(cv2.absdiff(before, thumbnail).mean()) > SCENE_CUT_LEVELS

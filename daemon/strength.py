"""How much of what a model changes is let through: nothing of sharp frames, all of blurred ones, no flicker between.

Knows measures and times of one stream's frames; nothing of pixels, tiles or engines.

A model changes sharp pictures too, if little; a frame whose strength is 0 stays as it came, bit for bit.
"""

from __future__ import annotations

from typing import Final, Literal

StrengthSetting = float | Literal["auto"]
"""A share from 0 to 1 for all frames, or `auto`: by their blur."""

SHARP_PX: Final = 0.7
BLURRED_PX: Final = 1.1
"""Blur, as `sharpness.blur_sigma` has it, up to which nothing and from which all is let through. Below, the model that
ships takes more from pictures than it gives them; of 73 sharp pictures, on which this was chosen, 84 %
are below, of 110 others 79 %, and of those that a Gaussian of 0.8 px blurred, none."""
FULL_CHANGE_S: Final = 1.0
"""The time that the strength takes from 0 to 1. Blur that comes and goes with every key frame of a codec, or with a
pulsing focus, moves it by a few hundredths only."""
_USUAL_FRAME_S: Final = 0.04
_LONGEST_STEP_S: Final = 0.2
"""A gap in the times is no time in which a viewer saw the strength change."""


class Strength:
    """The strength of one stream's frames, in their order."""

    def __init__(self) -> None:
        self._now: float | None = None
        self._time_s: float | None = None

    def follow(self, blur_px: float | None, time_s: float | None, *, afresh: bool) -> float:
        """The strength, 0 to 1, of the next frame.

        blur_px: None where it cannot be told: the strength stays, and begins with 1.
        time_s: when the frame is shown; None where that is not known.
        afresh: it is the first of a scene, which nothing before it has a say in.
        """
        step_s = _USUAL_FRAME_S
        if time_s is not None and self._time_s is not None:
            step_s = min(max(time_s - self._time_s, 0.0), _LONGEST_STEP_S)
        self._time_s = time_s
        if afresh:
            self._now = None
        if blur_px is not None:
            wanted = strength_for(blur_px)
            most = step_s / FULL_CHANGE_S
            self._now = wanted if self._now is None else min(max(wanted, self._now - most), self._now + most)
        return 1.0 if self._now is None else self._now


def strength_for(blur_px: float) -> float:
    """What a blur asks for, by itself; it rises smoothly."""
    share = min(max((blur_px - SHARP_PX) / (BLURRED_PX - SHARP_PX), 0.0), 1.0)
    return share * share * (3 - 2 * share)

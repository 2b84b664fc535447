"""A decoded picture and everything that is known of its time, colour and shape.

Knows numpy only: the client distribution ships this file as it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
"""RGB, (H, W, 3)."""


@dataclass(frozen=True, slots=True)
class Colour:
    """Code points of ITU-T H.273; 2 is unspecified. `full_range` is False for 16 to 235."""

    primaries: int = 2
    transfer: int = 2
    matrix: int = 2
    full_range: bool = False


@dataclass(frozen=True, slots=True)
class Publication:
    """How a frame came to a subscriber.

    run_id changes when the daemon restarts. `published_ns` is the publisher's monotonic clock, which means
    something on the host of `boot_id` only; `published_unix_ns` is its wall clock at the same moment.
    """

    run_id: str
    model: str
    boot_id: str
    published_ns: int
    published_unix_ns: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a stream.

    stream: the stream's name.
    seq: counts decoded frames from 0: a gap is a drop. Goes on over reconnects.
    pts, time_base: presentation time `pts * time_base` in seconds; pts is None where the source has none.
    captured_ns: Unix time of the exposure, by `clock`: `sender` (the camera says so) or `arrival`.
    arrived_ns: monotonic clock of this host when the frame was decoded.
    epoch: counts reconnects.
    pixels: uint8 or uint16 RGB (H, W, 3), of which 255 or 65535 is white.
    rotation: degrees counter-clockwise that a player must turn the picture.
    spent_ns: time spent in each stage so far, by the stage's name.
    drops: frames of this stream that were dropped so far.
    publication: set on received frames only.
    """

    stream: str
    seq: int
    pts: int | None
    time_base: Fraction
    captured_ns: int
    arrived_ns: int
    pixels: Pixels
    clock: Literal["sender", "arrival"] = "arrival"
    epoch: int = 0
    colour: Colour = Colour()
    sample_aspect_ratio: Fraction = Fraction(1)
    rotation: int = 0
    spent_ns: Mapping[str, int] = field(default_factory=dict)
    drops: int = 0
    publication: Publication | None = None
    origin: Any = None
    """What the source's own sink needs to write the frame back, e.g. the decoder's frame. Never leaves the process."""

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def time_s(self) -> float | None:
        """Presentation time in seconds."""
        return None if self.pts is None else float(self.pts * self.time_base)

    def age_s(self) -> float:
        """Seconds since the frame arrived at the daemon.

        By the monotonic clock where this process shares a host with the daemon; from another host, the age
        at publication plus the difference of the two wall clocks, which is as good as their agreement.
        """
        if self.publication is None or self.publication.boot_id == boot_id():
            return (time.monotonic_ns() - self.arrived_ns) / 1e9
        at_publication = self.publication.published_ns - self.arrived_ns
        return (at_publication + time.time_ns() - self.publication.published_unix_ns) / 1e9


def boot_id() -> str:
    """Identifies the running host since it booted: monotonic clocks compare only where it is equal."""
    global _boot_id
    if _boot_id is None:
        try:
            _boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:  # not Linux: the boot's time to the minute, and the host's name
            import platform

            boot_minute = round((time.time() - time.monotonic()) / 60)
            _boot_id = f"{platform.node()}-{boot_minute}"
    return _boot_id


_boot_id: str | None = None

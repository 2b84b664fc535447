"""A generated picture that moves and is blurred by its motion, with a frame counter for people and for programs.

Knows how it is drawn and when it is due; needs no camera, file or network.
"""

from __future__ import annotations

import binascii
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import SourceError
from .frame import Frame

SMALLEST: Final = (32, 48)  # (H, W)
LARGEST: Final = (8192, 8192)
RATES: Final = (0.001, 1000)
_BITS: Final = 48  # 32 of the number, 16 of its check sum
_LONGEST_ROWS: Final = (48, 24, 12)  # cells a row
_SMALLEST_CELL: Final = 4
_LARGEST_CELL: Final = 16
_BARS: Final = (
    (235, 235, 235),
    (235, 235, 16),
    (16, 235, 235),
    (16, 235, 16),
    (235, 16, 235),
    (235, 16, 16),
    (16, 16, 235),
)


class PatternSource:
    """Frames of a pattern that moves to the left, as blurred as a shutter that is open half the time makes it.

    size: (H, W). rate: frames a second.
    live: each frame comes when it is due; frames whose time has passed are left out, and leave a gap in `seq`. Else
    they come as fast as they are taken.
    frames: numbers from 0 up to here, without end if None.

    A frame's pixels depend on its number alone, which `read_counter` reads back. A `daemon.source.Source`.
    """

    def __init__(
        self,
        size: tuple[int, int] = (720, 1280),
        rate: Fraction | float = 25,
        *,
        stream: str = "test",
        live: bool = True,
        frames: int | None = None,
    ) -> None:
        height, width = size
        if not (SMALLEST[0] <= height <= LARGEST[0] and SMALLEST[1] <= width <= LARGEST[1]):
            least, most = (f"{limit[1]}x{limit[0]}" for limit in (SMALLEST, LARGEST))
            raise SourceError(f"test pattern: the size must be from {least} to {most}, got {width}x{height}")
        if not RATES[0] <= rate <= RATES[1]:
            raise SourceError(f"test pattern: the rate must be from {RATES[0]} to {RATES[1]}, got {rate}")
        self.rate = Fraction(rate).limit_denominator(1_000_000)
        self.name, self.live = stream, live
        self.damage: Sequence[str] = ()
        self.frames_expected = frames
        self._size, self._skipped = (height, width), 0
        self._closed = threading.Event()

    @property
    def counters(self) -> Mapping[str, int]:
        return {"skipped_frames": self._skipped}

    def __iter__(self) -> Iterator[Frame]:
        pattern = _Pattern(*self._size)
        seq, began_ns = 0, time.monotonic_ns()
        while self.frames_expected is None or seq < self.frames_expected:
            if self.live:
                # Every frame's time counts from the first: waits that are a little long do not add up.
                due_ns = began_ns + int(seq / self.rate * 10**9)
                if self._closed.wait(max(0, due_ns - time.monotonic_ns()) / 1e9):
                    return
            elif self._closed.is_set():
                return
            drawing_ns = time.monotonic_ns()
            pixels = pattern.draw(seq)
            arrived_ns = time.monotonic_ns()
            yield Frame(
                stream=self.name,
                seq=seq,
                pts=seq,
                time_base=1 / self.rate,
                captured_ns=time.time_ns(),
                arrived_ns=arrived_ns,
                pixels=pixels,
                spent_ns={"draw": arrived_ns - drawing_ns},
            )
            seq += 1
            if self.live:
                current = int((time.monotonic_ns() - began_ns) * self.rate / 10**9)
                self._skipped += max(0, current - seq)
                seq = max(seq, current)

    def close(self) -> None:
        """End the iteration, and a wait for the next frame, at once."""
        self._closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read_counter(pixels: NDArray[np.uint8]) -> int:
    """The number of a `PatternSource`'s frame, modulo 2**32; pixels: RGB (H, W, 3) in the size that was drawn.

    Survives lossy compression and restoring. Raises ValueError where there is no counter, or one that is damaged.
    """
    rows, columns, cell = _code_shape(*pixels.shape[:2])
    margin = cell // 4  # edges of cells are where codecs and networks err
    code = pixels[: rows * cell, : columns * cell, 1].reshape(rows, cell, columns, cell)
    levels = code[:, margin : cell - margin, :, margin : cell - margin].mean(axis=(1, 3)).ravel()
    bits = levels > (levels.min() + levels.max()) / 2
    data = np.packbits(bits).tobytes()
    if levels.max() - levels.min() < 64 or _check(data[:4]) != data[4:]:
        raise ValueError("the picture has no counter that can be read")
    return int.from_bytes(data[:4], "big")


class _Pattern:
    """What does not change is drawn once: a frame is a window of it, and its number."""

    def __init__(self, height: int, width: int) -> None:
        self._height, self._width = height, width
        self._rows, self._columns, self._cell = _code_shape(height, width)
        self._step = max(1, width // 80)
        scene = _scene(height, width)
        # Three in a row, so that the blur goes around; two of them serve every window.
        exposure = max(1, self._step // 2)
        around = cv2.blur(np.hstack([scene] * 3), (exposure, 1))
        self._twice = np.ascontiguousarray(around[:, width:], np.uint8)

    def draw(self, seq: int) -> NDArray[np.uint8]:
        """(H, W, 3)"""
        begin = seq * self._step % self._width
        pixels = self._twice[:, begin : begin + self._width].copy()
        self._draw_code(pixels, seq)
        self._draw_text(pixels, seq)
        return pixels

    def _draw_code(self, pixels: NDArray[np.uint8], seq: int) -> None:
        data = (seq % 2**32).to_bytes(4, "big")
        bits = np.unpackbits(np.frombuffer(data + _check(data), np.uint8)).reshape(self._rows, self._columns)
        cells = (16 + bits * 219).astype(np.uint8).repeat(self._cell, 0).repeat(self._cell, 1)
        pixels[: cells.shape[0], : cells.shape[1]] = cells[..., None]

    def _draw_text(self, pixels: NDArray[np.uint8], seq: int) -> None:
        text, font = f"{seq:06d}", cv2.FONT_HERSHEY_SIMPLEX
        scale, thickness = self._height / 360, max(1, self._height // 240)
        (width, height), below = cv2.getTextSize(text, font, scale, thickness)
        left, bottom = (self._width - width) // 2, self._height - height
        box = pixels[max(0, bottom - height - below) : bottom + 2 * below, max(0, left - below) : left + width + below]
        box[:] = 16
        cv2.putText(pixels, text, (left, bottom), font, scale, (235, 235, 235), thickness, cv2.LINE_AA)


def _scene(height: int, width: int) -> NDArray[np.uint8]:
    """A zone plate, which shows every lost frequency, text and colour bars; its left and right edges join."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    dy, dx = y - height / 2, x - width / 2
    radius = min(height, width) / 2
    # The rings' frequency grows to a quarter of the pixels' at the rim, and they fade out there.
    rings = np.cos((dx**2 + dy**2) * (np.pi / 4 / radius)) * np.clip(2 - np.hypot(dx, dy) / radius * 1.6, 0, 1)
    scene = np.repeat(np.rint(128 + 100 * rings).astype(np.uint8)[..., None], 3, 2)
    for number, colour in enumerate(_BARS):
        scene[-height // 5 :, number * width // len(_BARS) : (number + 1) * width // len(_BARS)] = colour
    for row, scale in enumerate((1.0, 0.7, 0.5, 0.35)):
        place = (width // 40, int(height * (0.25 + row * 0.12)))
        size, thickness = scale * height / 400, max(1, round(scale * height / 300))
        for shade, shift in ((16, thickness), (235, 0)):
            corner = (place[0] + shift, place[1] + shift)
            cv2.putText(scene, "deblurd", corner, cv2.FONT_HERSHEY_SIMPLEX, size, (shade,) * 3, thickness, cv2.LINE_AA)
    return scene


def _code_shape(height: int, width: int) -> tuple[int, int, int]:
    """Rows and columns of cells, and a cell's pixels: in one row, unless the picture is too narrow."""
    columns = next((count for count in _LONGEST_ROWS if width >= count * _SMALLEST_CELL), 0)
    if not columns or height < SMALLEST[0]:
        raise ValueError(f"a picture with a counter must have at least {SMALLEST[1]}x{SMALLEST[0]} pixels")
    return _BITS // columns, columns, min(_LARGEST_CELL, width // columns)


def _check(data: bytes) -> bytes:
    """Of neither only zeros nor only ones is the check sum the same: black and white pictures carry no counter."""
    return binascii.crc_hqx(data, 0xFFFF).to_bytes(2, "big")

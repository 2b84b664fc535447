"""Make blurred pictures out of sharp ones: kernels, light, noise and compression.

Knows pictures as arrays only; nothing of files, torch or of what training draws.

Pictures are RGB, uint8, (H, W, 3). Every random choice comes from the generator that is passed in, so a seed
repeats a picture exactly. Kernels are centred on their mass: a restored picture must not move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Light = NDArray[np.float32]
Kernel = NDArray[np.float32]
Rng = np.random.Generator

DISPLAY_GAMMA = 2.2

MARGIN_PX = 24
"""Pictures are blurred with this much more around the crop, so that crops hold no mirrored border."""


def _normalised(kernel: NDArray[np.float64]) -> Kernel:
    return np.asarray(kernel / kernel.sum(), np.float32)


def gaussian_kernel(sigma: float) -> Kernel:
    """Gaussian of `sigma` px, cut at four sigma."""
    radius = max(1, int(np.ceil(4 * sigma)))
    x = np.arange(-radius, radius + 1, dtype=np.float64)
    line = np.exp(-0.5 * (x / sigma) ** 2)
    return _normalised(np.outer(line, line))


def defocus_kernel(radius: float) -> Kernel:
    """Disc of `radius` px with an anti-aliased edge, the shape of an open aperture out of focus."""
    oversampling = 8
    half = int(np.ceil(radius + 0.5))
    size = 2 * half + 1
    axis = (np.arange(size * oversampling) + 0.5) / oversampling - size / 2
    disc = (axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2).astype(np.float64)
    return _normalised(disc.reshape(size, oversampling, size, oversampling).sum(axis=(1, 3)))


def motion_kernel(length: float, rng: Rng, *, bend: float | None = None) -> Kernel:
    """The trace of a camera that moves `length` px during the exposure.

    The heading does a random walk whose standard deviation over the whole path is `bend` radians (drawn if
    None: a third of the paths are straight), as in Boracchi and Foi, "Modeling the performance of image
    restoration from motion blur", IEEE TIP 2012.
    """
    if bend is None:
        bend = 0.0 if rng.random() < 1 / 3 else float(rng.uniform(0.2, 2.5))
    steps = max(16, int(np.ceil(length * 8)))
    turn = rng.standard_normal(steps).cumsum() * (bend / np.sqrt(steps))
    heading = rng.uniform(0, 2 * np.pi) + turn
    step = length / steps
    x, y = np.cos(heading).cumsum() * step, np.sin(heading).cumsum() * step
    return _trace(x, y)


def line_kernel(length: float, angle: float) -> Kernel:
    """A straight movement of `length` px in the direction of `angle` radians."""
    along = np.linspace(-length / 2, length / 2, max(16, int(np.ceil(length * 8))))
    return _trace(np.cos(angle) * along, np.sin(angle) * along)


def _trace(x: NDArray[np.float64], y: NDArray[np.float64]) -> Kernel:
    """The exposure left by a point that was at each (x, y) px for the same time, centred on its mass."""
    x, y = x - x.mean(), y - y.mean()
    half = int(np.ceil(max(np.abs(x).max(), np.abs(y).max()))) + 1
    size = 2 * half + 1
    kernel = np.zeros((size, size), np.float64)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - left, y - top
    for dx, dy, weight in ((0, 0, (1 - fx) * (1 - fy)), (1, 0, fx * (1 - fy)), (0, 1, (1 - fx) * fy), (1, 1, fx * fy)):
        np.add.at(kernel, (top + half + dy, left + half + dx), weight)
    return _normalised(kernel)


def convolve(picture: Light, kernel: Kernel) -> Light:
    """Convolve every channel; the border is mirrored."""
    flipped = np.ascontiguousarray(kernel[::-1, ::-1])
    # A movement leaves most of its square empty, and OpenCV pays for the square: several times as much.
    used = (flipped != 0).astype(np.uint8)
    row, column = (side // 2 for side in used.shape)
    used[row, column] = 1  # the anchor must lie within
    x, y, width, height = cv2.boundingRect(used)
    box, anchor = flipped[y : y + height, x : x + width], (column - x, row - y)
    return cv2.filter2D(picture, -1, box, anchor=anchor, borderType=cv2.BORDER_REFLECT_101)  # type: ignore[return-value]


def shrink_and_enlarge(picture: Light, factor: float, enlarge: int = cv2.INTER_CUBIC) -> Light:
    """Lose detail by scaling down by `factor` (area average) and back up to the same size."""
    height, width = picture.shape[:2]
    small = cv2.resize(
        picture,
        (max(1, round(width / factor)), max(1, round(height / factor))),
        interpolation=cv2.INTER_AREA,
    )
    return cv2.resize(small, (width, height), interpolation=enlarge)  # type: ignore[return-value]


def add_noise(picture: Light, sigma: float, normal: Light) -> Light:
    """Add shot and read noise with a standard deviation of `sigma` levels (of 255) at mid grey.

    normal: independent numbers of the standard normal distribution, as many as `picture` has.
    """
    variance = (sigma / 255) ** 2 * (0.5 + picture)
    return np.asarray(picture + normal * np.sqrt(variance), np.float32)


def stored_normal(shape: tuple[int, ...], rng: Rng) -> Light:
    """Read-only numbers of the standard normal distribution, out of a row of 4 million at a place that `rng` draws.

    To draw the numbers themselves takes longer than most blurs; only for more than the row holds is it done.
    """
    size, row = math.prod(shape), _normal_row()
    if size > len(row):
        return rng.standard_normal(shape, np.float32)
    start = int(rng.integers(len(row) - size + 1))
    return row[start : start + size].reshape(shape)


@cache
def _normal_row() -> Light:
    # One seed for all processes, so that what a seed repeats does not depend on which of them it runs in.
    row = np.random.default_rng(0).standard_normal(1 << 22, np.float32)
    row.setflags(write=False)
    return row


def compress_jpeg(picture: Picture, quality: int) -> Picture:
    """Encode and decode as JPEG of `quality` 1 to 100 (4:2:0)."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    ok, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError(f"a picture of shape {picture.shape} does not encode as JPEG")
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)  # type: ignore[return-value]


def to_light(picture: Picture) -> Light:
    """uint8 levels to float32 0 to 1, display-referred."""
    return picture.astype(np.float32) / np.float32(255)


def to_picture(light: Light) -> Picture:
    """float32 0 to 1 to uint8 levels, clipped and rounded."""
    return (light.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def to_linear_light(picture: Picture) -> Light:
    """uint8 levels to float32 0 to 1 where light adds up, as in a camera: the display gamma is undone.

    Rim et al., RSBlur (arXiv 2202.08771), show that blurring there decides how a network does on real blur.
    """
    return cv2.LUT(picture, _LINEAR)  # type: ignore[return-value]


def to_display_light(linear: Light) -> Light:
    """The inverse of `to_linear_light` but for the levels: clipped, float32 0 to 1."""
    return cv2.pow(np.clip(linear, 0, 1), 1 / DISPLAY_GAMMA)  # type: ignore[return-value]


_LINEAR = cv2.pow(to_light(np.arange(256, dtype=np.uint8)), DISPLAY_GAMMA)


def in_linear_light(operation: Callable[[Light], Light], picture: Light) -> Light:
    """Apply `operation` to display-referred light as a camera would: undo the display gamma, apply, clip, redo it."""
    return to_display_light(operation(cv2.pow(picture, DISPLAY_GAMMA)))  # type: ignore[arg-type]


def convolve_gaussian(picture: Light, sigma: float) -> Light:
    """Gaussian blur; separable, so much faster than `convolve` with the same kernel."""
    return cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)  # type: ignore[return-value]


CASES: Mapping[str, Callable[[Picture, Rng], Picture]] = {
    "gaussian 1.6": lambda p, _: to_picture(convolve_gaussian(to_light(p), 1.6)),
    "gaussian 3": lambda p, _: to_picture(convolve_gaussian(to_light(p), 3.0)),
    "gaussian 0.8-4": lambda p, rng: to_picture(convolve_gaussian(to_light(p), float(rng.uniform(0.8, 4)))),
    "resize 4": lambda p, _: to_picture(shrink_and_enlarge(to_light(p), 4)),
    "motion 9": lambda p, rng: to_picture(convolve(to_light(p), motion_kernel(9, rng))),
    "motion 21": lambda p, rng: to_picture(convolve(to_light(p), motion_kernel(21, rng))),
    "defocus 3": lambda p, _: to_picture(convolve(to_light(p), defocus_kernel(3))),
    "gaussian 2 + jpeg 80": lambda p, _: compress_jpeg(to_picture(convolve_gaussian(to_light(p), 2)), 80),
    "motion 12 + noise 4": lambda p, rng: to_picture(
        add_noise(convolve(to_light(p), motion_kernel(12, rng)), 4, rng.standard_normal(p.shape, np.float32))
    ),
    "sharp": lambda p, _: p.copy(),
}
"""The blurs that evaluation reports, one row each: fixed strength, the same for every model."""

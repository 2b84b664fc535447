"""Make blurred pictures out of sharp ones: kernels, light, noise and compression.

Knows pictures as arrays only; nothing of files, torch or training.

Pictures are RGB, uint8, (H, W, 3). Every random choice comes from the generator that is passed in, so a seed
repeats a picture exactly. Kernels are centred on their mass: a restored picture must not move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
    return cv2.filter2D(picture, -1, flipped, borderType=cv2.BORDER_REFLECT_101)  # type: ignore[return-value]


def shrink_and_enlarge(picture: Light, factor: float, enlarge: int = cv2.INTER_CUBIC) -> Light:
    """Lose detail by scaling down by `factor` (area average) and back up to the same size."""
    height, width = picture.shape[:2]
    small = cv2.resize(
        picture,
        (max(1, round(width / factor)), max(1, round(height / factor))),
        interpolation=cv2.INTER_AREA,
    )
    return cv2.resize(small, (width, height), interpolation=enlarge)  # type: ignore[return-value]


def add_noise(picture: Light, sigma: float, rng: Rng) -> Light:
    """Add shot and read noise with a standard deviation of `sigma` levels (of 255) at mid grey."""
    variance = (sigma / 255) ** 2 * (0.5 + picture)
    return np.asarray(picture + rng.standard_normal(picture.shape, np.float32) * np.sqrt(variance), np.float32)


def compress_jpeg(picture: Picture, quality: int) -> Picture:
    """Encode and decode as JPEG of `quality` 1 to 100 (4:2:0)."""
    ok, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError(f"a picture of shape {picture.shape} does not encode as JPEG")
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])  # type: ignore[index]


def to_light(picture: Picture) -> Light:
    """uint8 levels to float32 0 to 1, display-referred."""
    return picture.astype(np.float32) / np.float32(255)


def to_picture(light: Light) -> Picture:
    """float32 0 to 1 to uint8 levels, clipped and rounded."""
    return (light.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def in_linear_light(operation: Callable[[Light], Light], picture: Light) -> Light:
    """Apply `operation` where light adds up, as in a camera: undo the display gamma, apply, clip, redo it.

    Rim et al., RSBlur (arXiv 2202.08771), show that this decides how a network does on real blur.
    """
    linear = cv2.pow(picture, DISPLAY_GAMMA)
    blurred = operation(linear)  # type: ignore[arg-type]
    return cv2.pow(np.clip(blurred, 0, 1), 1 / DISPLAY_GAMMA)  # type: ignore[return-value]


def random_gaussian(picture: Light, rng: Rng) -> Light:
    return convolve_gaussian(picture, float(rng.uniform(0.5, 4.0)))


def random_resize(picture: Light, rng: Rng) -> Light:
    enlarge = (cv2.INTER_CUBIC, cv2.INTER_LINEAR)[int(rng.integers(2))]
    # Whole factors, as from 360 to 720 lines, are common, and leave a grid that can be learnt.
    factor = float(rng.choice((2, 4))) if rng.random() < 0.5 else float(rng.uniform(2.0, 4.5))
    return shrink_and_enlarge(picture, factor, enlarge)


def random_motion(picture: Light, rng: Rng) -> Light:
    return convolve(picture, motion_kernel(float(rng.uniform(3.0, 25.0)), rng))


def random_defocus(picture: Light, rng: Rng) -> Light:
    return convolve(picture, defocus_kernel(float(rng.uniform(0.8, 5.0))))


def convolve_gaussian(picture: Light, sigma: float) -> Light:
    """Gaussian blur; separable, so much faster than `convolve` with the same kernel."""
    return cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)  # type: ignore[return-value]


BLURS: Mapping[str, Callable[[Light, Rng], Light]] = {
    "gaussian": random_gaussian,
    "resize": random_resize,
    "motion": random_motion,
    "defocus": random_defocus,
    "sharp": lambda picture, _: picture,
}
"""The blurs that training draws from, each with its own random strength."""


@dataclass(frozen=True)
class Degradation:
    """How a training picture is spoilt: one blur drawn by weight, then noise, then JPEG.

    `linear_light`, `noise` and `jpeg` are the shares of pictures that get them.
    """

    weights: Mapping[str, float] = field(
        default_factory=lambda: {"gaussian": 0.22, "resize": 0.16, "motion": 0.38, "defocus": 0.17, "sharp": 0.07}
    )
    linear_light: float = 0.5
    noise: float = 0.15
    noise_sigma: tuple[float, float] = (0.5, 4.0)
    jpeg: float = 0.3
    jpeg_quality: tuple[int, int] = (60, 95)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(BLURS))
        if unknown:
            raise ValueError(f"blur must be one of {', '.join(BLURS)}, got {unknown[0]!r}")
        if not self.weights or min(self.weights.values()) < 0 or sum(self.weights.values()) <= 0:
            raise ValueError(f"blur weights must be at least 0 and not all 0, got {dict(self.weights)}")

    def apply(self, picture: Picture, rng: Rng) -> Picture:
        """Return a spoilt copy of `picture`, same shape."""
        names = list(self.weights)
        shares = np.array([self.weights[name] for name in names])
        name = names[int(rng.choice(len(names), p=shares / shares.sum()))]
        light = to_light(picture)
        if name != "sharp":
            blur = BLURS[name]
            if rng.random() < self.linear_light:
                light = in_linear_light(lambda linear: blur(linear, rng), light)
            else:
                light = blur(light, rng)
        if rng.random() < self.noise:
            light = add_noise(light, float(rng.uniform(*self.noise_sigma)), rng)
        spoilt = to_picture(light)
        if rng.random() < self.jpeg:
            spoilt = compress_jpeg(spoilt, int(rng.integers(self.jpeg_quality[0], self.jpeg_quality[1] + 1)))
        return spoilt


CASES: Mapping[str, Callable[[Picture, Rng], Picture]] = {
    "gaussian 1.6": lambda p, _: to_picture(convolve_gaussian(to_light(p), 1.6)),
    "gaussian 3": lambda p, _: to_picture(convolve_gaussian(to_light(p), 3.0)),
    "gaussian 0.8-4": lambda p, rng: to_picture(convolve_gaussian(to_light(p), float(rng.uniform(0.8, 4)))),
    "resize 4": lambda p, _: to_picture(shrink_and_enlarge(to_light(p), 4)),
    "motion 9": lambda p, rng: to_picture(convolve(to_light(p), motion_kernel(9, rng))),
    "motion 21": lambda p, rng: to_picture(convolve(to_light(p), motion_kernel(21, rng))),
    "defocus 3": lambda p, _: to_picture(convolve(to_light(p), defocus_kernel(3))),
    "gaussian 2 + jpeg 80": lambda p, _: compress_jpeg(to_picture(convolve_gaussian(to_light(p), 2)), 80),
    "motion 12 + noise 4": lambda p, rng: to_picture(add_noise(convolve(to_light(p), motion_kernel(12, rng)), 4, rng)),
    "sharp": lambda p, _: p.copy(),
}
"""The blurs that evaluation reports, one row each: fixed strength, the same for every model."""

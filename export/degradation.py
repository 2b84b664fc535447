"""How training pictures are spoilt: which blur, how strong, with what noise and compression.

Knows pictures as arrays and the settings of a run; how each blur is made is `export.blur`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

import cv2
import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from .blur import (
    Light,
    Picture,
    Rng,
    add_noise,
    compress_jpeg,
    convolve,
    convolve_gaussian,
    defocus_kernel,
    motion_kernel,
    shrink_and_enlarge,
    stored_normal,
    to_display_light,
    to_light,
    to_linear_light,
    to_picture,
)

Blur = Literal["gaussian", "random_gaussian", "resize", "motion", "defocus", "sharp"]
BLURS: tuple[Blur, ...] = get_args(Blur)


GREATEST = 200.0
"""Of all strengths: more than fits into a crop, and takes memory without end."""


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1] <= GREATEST:
        raise ValueError(
            f"must be two numbers above 0 and up to {GREATEST:g}, the smaller one first, got {list(bounds)}"
        )
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]
"""Least and greatest value; each picture draws its own in between."""
Quality = Annotated[int, Field(ge=1, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
"""Share of the pictures that get something."""


class Degradation(BaseModel):
    """How a training picture is spoilt: one blur, then noise, then JPEG.

    kind: one blur for all pictures, or `mixed`: each picture draws one by `weights`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal[Blur, "mixed"] = "mixed"
    weights: dict[Blur, Annotated[float, Field(ge=0)]] = Field(
        default={"random_gaussian": 0.22, "resize": 0.16, "motion": 0.38, "defocus": 0.17, "sharp": 0.07}
    )
    gaussian_sigma_px: float = Field(default=3.0, gt=0, le=GREATEST)
    random_gaussian_sigma_px: Range = (0.5, 4.0)
    resize_factor: Range = (2.0, 4.5)
    """How many times a picture is shrunk on each side before it is enlarged again."""
    motion_length_px: Range = (3.0, 25.0)
    defocus_radius_px: Range = (0.8, 5.0)
    linear_light: Share = 0.5
    """Of the pictures, how many are blurred where light adds up, as in a camera; the others on display levels."""
    noise: Share = 0.15
    noise_levels: Range = (0.5, 4.0)
    """Standard deviation at mid grey, of 255."""
    jpeg: Share = 0.3
    jpeg_quality: Annotated[tuple[Quality, Quality], AfterValidator(_ascending)] = (60, 95)

    @model_validator(mode="after")
    def _something_is_drawn(self) -> Self:
        if sum(self.weights.values()) <= 0:
            raise ValueError(f"'blur.weights' must not all be 0, got {dict(self.weights)}")
        return self

    def apply(self, picture: Picture, rng: Rng) -> Picture:
        """Return a spoilt copy of `picture`, same shape."""
        blur = self._draw(rng)
        if blur != "sharp" and rng.random() < self.linear_light:
            light = to_display_light(self.blur(blur, to_linear_light(picture), rng))
        else:
            light = self.blur(blur, to_light(picture), rng)
        if rng.random() < self.noise:
            light = add_noise(light, float(rng.uniform(*self.noise_levels)), stored_normal(light.shape, rng))
        spoilt = to_picture(light)
        if rng.random() < self.jpeg:
            spoilt = compress_jpeg(spoilt, int(rng.integers(self.jpeg_quality[0], self.jpeg_quality[1] + 1)))
        return spoilt

    def blur(self, name: Blur, picture: Light, rng: Rng) -> Light:
        """Return `picture` with the blur `name`, its strength drawn from `rng`."""
        match name:
            case "gaussian":
                return convolve_gaussian(picture, self.gaussian_sigma_px)
            case "random_gaussian":
                return convolve_gaussian(picture, float(rng.uniform(*self.random_gaussian_sigma_px)))
            case "resize":
                enlarge = (cv2.INTER_CUBIC, cv2.INTER_LINEAR)[int(rng.integers(2))]
                return shrink_and_enlarge(picture, self._resize_factor(rng), enlarge)
            case "motion":
                return convolve(picture, motion_kernel(float(rng.uniform(*self.motion_length_px)), rng))
            case "defocus":
                return convolve(picture, defocus_kernel(float(rng.uniform(*self.defocus_radius_px))))
            case "sharp":
                return picture

    def _draw(self, rng: Rng) -> Blur:
        if self.kind != "mixed":
            return self.kind
        names = list(self.weights)
        shares = np.array([self.weights[name] for name in names])
        return names[int(rng.choice(len(names), p=shares / shares.sum()))]

    def _resize_factor(self, rng: Rng) -> float:
        least, greatest = self.resize_factor
        whole = [factor for factor in (2.0, 4.0) if least <= factor <= greatest]
        # Whole factors, as from 360 to 720 lines, are common, and leave a grid that can be learnt.
        if whole and rng.random() < 0.5:
            return float(rng.choice(whole))
        return float(rng.uniform(least, greatest))


ARTICLE = Degradation(kind="gaussian", linear_light=0, noise=0, jpeg=0)
"""Gaussian blur of one strength and nothing else, as in the experiment that this project began with."""

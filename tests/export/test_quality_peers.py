"""The peers of `benchmarks/quality.py`: the Wiener filter is told the true kernel, and makes use of it."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from quality_peers import KERNELS, unsharp, wiener

from export.blur import CASES, Picture, convolve, to_light, to_picture
from export.leaves import dead_leaves
from export.metrics import psnr

LOSSLESS = [case for case in KERNELS if "jpeg" not in case and "noise" not in case]


@pytest.fixture(scope="module")
def scene() -> Picture:
    return np.asarray(cv2.GaussianBlur(dead_leaves(192, 192, np.random.default_rng(1)), (0, 0), 0.7), np.uint8)


@pytest.mark.parametrize("case", LOSSLESS)
def test_the_kernel_that_a_filter_is_told_is_the_one_of_the_blur(case: str, scene: Picture) -> None:
    blurred = CASES[case](scene, np.random.default_rng(7))
    told = to_picture(convolve(to_light(scene), KERNELS[case](np.random.default_rng(7))))
    assert cv2.absdiff(blurred, told).max() <= 1


def test_every_blur_that_is_a_convolution_has_its_kernel() -> None:
    assert set(CASES) - set(KERNELS) == {"resize 4", "sharp"}


@pytest.mark.parametrize("case", ["gaussian 1.6", "motion 9", "defocus 3"])
def test_a_filter_that_is_told_all_gains_more_than_unsharp_masking(case: str, scene: Picture) -> None:
    blurred = CASES[case](scene, np.random.default_rng(7))
    restored = wiener(blurred, KERNELS[case](np.random.default_rng(7)), scene)
    assert psnr(scene, restored) > psnr(scene, blurred) + 2
    assert psnr(scene, restored) > psnr(scene, unsharp(blurred)) + 1

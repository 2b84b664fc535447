"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from export.leaves import dead_leaves
from export.metrics import CEILING_DB, colour_shift, psnr, ssim

SCENE = dead_leaves(64, 64, np.random.default_rng(2), leaves=200)


def grey(level: int, side: int = 16) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((side, side, 3), level, np.uint8)


@pytest.mark.parametrize(("error", "expected"), [(1, 48.1308), (10, 28.1308), (255, 0.0)])
def test_psnr_of_an_even_error(error: int, expected: float) -> None:
    assert psnr(grey(0), grey(error)) == pytest.approx(expected, abs=1e-4)
    assert psnr(grey(error), grey(0)) == pytest.approx(expected, abs=1e-4)


def test_psnr_of_one_wrong_pixel_counts_all_pixels() -> None:
    picture = grey(0)
    picture[3, 4, 1] = 16
    assert psnr(grey(0), picture) == pytest.approx(10 * math.log10(255**2 * 16 * 16 * 3 / 16**2))


def test_equal_pictures_reach_the_ceiling() -> None:
    assert psnr(SCENE, SCENE) == CEILING_DB
    assert ssim(SCENE, SCENE) == pytest.approx(1)
    assert colour_shift(SCENE, SCENE) == 0


def test_ssim_of_even_pictures_is_the_term_of_their_means() -> None:
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert ssim(grey(100), grey(120)) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_a_negative_is_below_nothing() -> None:
    """Structure that is turned round has a negative covariance."""
    around_the_middle = (128 + (SCENE.astype(int) - 128) // 2).astype(np.uint8)
    assert ssim(around_the_middle, 255 - around_the_middle) < 0


def test_ssim_weighs_a_window_by_its_gaussian() -> None:
    """One window of 11x11 with one bright pixel in its middle, written out."""
    x, y = grey(100, 11), grey(100, 11)
    y[5, 5] = 200
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weight = 1 / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean, variance = 100 + 100 * weight, 100**2 * weight * (1 - weight)
    expected = (2 * 100 * mean + c1) * c2 / ((100**2 + mean**2 + c1) * (variance + c2))
    assert ssim(x, y) == pytest.approx(expected, rel=1e-6)


def test_a_shift_of_grey_is_no_shift_of_colour() -> None:
    assert colour_shift(grey(90), grey(140)) == pytest.approx(0, abs=0.01)


def test_the_shift_from_white_to_red_is_that_of_the_lab_tables() -> None:
    red = grey(0)
    red[..., 0] = 255
    assert colour_shift(grey(255), red) == pytest.approx(math.hypot(80.09, 67.20), abs=0.1)


def test_pictures_of_different_shapes_are_refused() -> None:
    for metric in (psnr, ssim, colour_shift):
        with pytest.raises(ValueError, match="one shape"):
            metric(grey(0, 16), grey(0, 17))


def test_ssim_refuses_less_than_a_window() -> None:
    with pytest.raises(ValueError, match="11x11"):
        ssim(grey(0, 10), grey(0, 10))

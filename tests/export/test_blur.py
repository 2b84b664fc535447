"""Blurs: kernels that neither add light nor move the picture, and pictures that a seed repeats."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.blur import (
    BLURS,
    CASES,
    Degradation,
    Kernel,
    compress_jpeg,
    convolve,
    convolve_gaussian,
    defocus_kernel,
    gaussian_kernel,
    in_linear_light,
    motion_kernel,
    to_light,
    to_picture,
)
from export.leaves import dead_leaves

SCENE = dead_leaves(96, 112, np.random.default_rng(1), leaves=200)


def centre_of_mass(kernel: Kernel) -> tuple[float, float]:
    """Offset from the kernel's middle, in px."""
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in kernel.shape)
    return float((kernel.sum(1) * rows).sum()), float((kernel.sum(0) * columns).sum())


def kernels() -> st.SearchStrategy[Kernel]:
    seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
    return st.one_of(
        st.floats(0.3, 6).map(gaussian_kernel),
        st.floats(0.5, 8).map(defocus_kernel),
        st.builds(motion_kernel, st.floats(1, 40), seeds),
    )


@settings(deadline=None)
@given(kernels())
def test_a_kernel_keeps_the_light_and_the_place(kernel: Kernel) -> None:
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert centre_of_mass(kernel) == pytest.approx((0, 0), abs=1e-3)
    assert kernel.shape[0] % 2 == kernel.shape[1] % 2 == 1


@settings(deadline=None)
@given(st.floats(2, 40), st.integers(0, 2**32 - 1))
def test_a_straight_path_is_as_long_as_was_asked(length: float, seed: int) -> None:
    kernel = motion_kernel(length, np.random.default_rng(seed), bend=0.0)
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in kernel.shape)
    variance = (kernel.sum(1) * rows**2).sum() + (kernel.sum(0) * columns**2).sum()
    # A line of length L has a variance of L^2 / 12; spreading a point over whole pixels adds at most 1/2.
    assert length**2 / 12 * 0.98 <= variance <= length**2 / 12 + 0.5


def test_a_bent_path_reaches_less_far_than_a_straight_one() -> None:
    straight = motion_kernel(30, np.random.default_rng(0), bend=0.0)
    bent = motion_kernel(30, np.random.default_rng(0), bend=6.0)
    assert max(bent.shape) < max(straight.shape)


@pytest.mark.parametrize("radius", [1.5, 3.0, 5.0])
def test_a_defocus_disc_covers_its_area_evenly(radius: float) -> None:
    assert defocus_kernel(radius).max() == pytest.approx(1 / (np.pi * radius**2), rel=0.03)


def test_a_convolution_turns_a_point_into_the_kernel() -> None:
    point = np.zeros((31, 31, 3), np.float32)
    point[15, 15] = 1
    kernel = motion_kernel(9, np.random.default_rng(3), bend=1.0)
    half = kernel.shape[0] // 2
    spread = convolve(point, kernel)[15 - half : 16 + half, 15 - half : 16 + half]
    np.testing.assert_allclose(spread[..., 1], kernel, atol=1e-6)


def test_the_separable_gaussian_equals_its_kernel() -> None:
    light = to_light(SCENE)
    np.testing.assert_allclose(convolve_gaussian(light, 1.6), convolve(light, gaussian_kernel(1.6)), atol=1e-3)


def test_an_even_picture_stays_as_it_is() -> None:
    grey = np.full((40, 40, 3), 137, np.uint8)
    for name, blur in BLURS.items():
        blurred = to_picture(blur(to_light(grey), np.random.default_rng(0)))
        np.testing.assert_array_equal(blurred, grey, err_msg=name)


def test_light_adds_up_linearly_where_it_is_asked() -> None:
    """Half black, half white averages to the level that emits half the light, not to the middle level."""
    halves = np.zeros((1, 2, 3), np.float32)
    halves[:, 1] = 1
    mixed = in_linear_light(lambda light: np.full_like(light, light.mean()), halves)
    assert mixed.mean() == pytest.approx(0.5 ** (1 / 2.2), abs=1e-4)


def test_levels_survive_the_way_to_light_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(to_picture(to_light(levels)), levels)


def test_jpeg_of_low_quality_loses_more() -> None:
    loss = [np.abs(compress_jpeg(SCENE, quality).astype(int) - SCENE).mean() for quality in (20, 95)]
    assert loss[0] > 2 * loss[1] > 0


@pytest.mark.parametrize("case", CASES)
def test_a_seed_repeats_a_case(case: str) -> None:
    first, second = (CASES[case](SCENE, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == SCENE.shape
    assert (case == "sharp") == np.array_equal(first, SCENE)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_a_seed_repeats_a_degradation(seed: int) -> None:
    first, second = (Degradation().apply(SCENE, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == SCENE.shape
    assert first.dtype == np.uint8


def test_a_degradation_without_noise_or_jpeg_leaves_sharp_pictures_alone() -> None:
    harmless = Degradation(weights={"sharp": 1.0}, noise=0, jpeg=0)
    np.testing.assert_array_equal(harmless.apply(SCENE, np.random.default_rng(0)), SCENE)


@pytest.mark.parametrize(
    ("weights", "rule"),
    [
        ({"gausian": 1.0}, "blur must be one of gaussian, .*, got 'gausian'"),
        ({"gaussian": -1.0}, "at least 0"),
        ({"gaussian": 0.0}, "not all 0"),
        ({}, "not all 0"),
    ],
)
def test_blurs_that_make_no_sense_are_refused(weights: dict[str, float], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Degradation(weights=weights)

"""Blurs: kernels that neither add light nor move the picture, and pictures that a seed repeats."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.blur import (
    CASES,
    Kernel,
    add_noise,
    compress_jpeg,
    convolve,
    convolve_gaussian,
    defocus_kernel,
    gaussian_kernel,
    in_linear_light,
    motion_kernel,
    stored_normal,
    to_display_light,
    to_light,
    to_linear_light,
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


def test_a_kernel_with_all_its_weight_in_one_corner_moves_the_picture_there() -> None:
    light, kernel = to_light(SCENE), np.zeros((7, 7), np.float32)
    kernel[1, 5] = 1
    np.testing.assert_allclose(convolve(light, kernel)[8:-8, 8:-8], light[10:-6, 6:-10], atol=1e-6)


def test_the_separable_gaussian_equals_its_kernel() -> None:
    light = to_light(SCENE)
    np.testing.assert_allclose(convolve_gaussian(light, 1.6), convolve(light, gaussian_kernel(1.6)), atol=1e-3)


def test_light_adds_up_linearly_where_it_is_asked() -> None:
    """Half black, half white averages to the level that emits half the light, not to the middle level."""
    halves = np.zeros((1, 2, 3), np.float32)
    halves[:, 1] = 1
    mixed = in_linear_light(lambda light: np.full_like(light, light.mean()), halves)
    assert mixed.mean() == pytest.approx(0.5 ** (1 / 2.2), abs=1e-4)


def test_levels_survive_the_way_to_light_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(to_picture(to_light(levels)), levels)
    np.testing.assert_array_equal(to_picture(to_display_light(to_linear_light(levels))), levels)


def test_linear_light_is_the_same_from_levels_and_from_light() -> None:
    seen = []
    in_linear_light(lambda linear: seen.append(linear) or linear, to_light(SCENE))
    np.testing.assert_array_equal(to_linear_light(SCENE), seen[0])


@pytest.mark.parametrize("level", [0.25, 0.5, 0.75])
def test_noise_has_its_strength_at_mid_grey_and_more_in_the_light(level: float) -> None:
    grey = np.full((200, 300, 3), level, np.float32)
    noise = 255 * (add_noise(grey, 4, stored_normal(grey.shape, np.random.default_rng(1))) - grey)
    assert noise.mean() == pytest.approx(0, abs=0.05)
    assert noise.std() == pytest.approx(4 * np.sqrt(0.5 + level), rel=0.01)


def test_stored_noise_repeats_with_a_seed_and_with_no_other() -> None:
    first, again, other = (stored_normal((176, 176, 3), np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.02


def test_a_picture_larger_than_the_stored_noise_gets_its_own() -> None:
    assert stored_normal((1200, 1200, 3), np.random.default_rng(0)).std() == pytest.approx(1, abs=0.01)


def test_jpeg_of_low_quality_loses_more() -> None:
    loss = [np.abs(compress_jpeg(SCENE, quality).astype(int) - SCENE).mean() for quality in (20, 95)]
    assert loss[0] > 2 * loss[1] > 0


@pytest.mark.parametrize("case", CASES)
def test_a_seed_repeats_a_case(case: str) -> None:
    first, second = (CASES[case](SCENE, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == SCENE.shape
    assert (case == "sharp") == np.array_equal(first, SCENE)

from __future__ import annotations

import cv2
import numpy as np
import pytest
from shapes import blurred, shapes

from daemon.sharpness import blur_sigma


def measured(picture: np.ndarray) -> float:
    sigma = blur_sigma(picture)
    assert sigma is not None
    return sigma


def test_the_measure_is_the_sigma_of_a_gaussian_in_pixels() -> None:
    for sigma in (0.6, 1.0, 1.6, 2.4):
        assert measured(blurred(shapes(), sigma)) == pytest.approx((sigma**2 + 0.5**2) ** 0.5, rel=0.25)


def test_more_blur_measures_more() -> None:
    found = [measured(blurred(shapes(), sigma)) for sigma in (0.3, 0.5, 0.7, 0.9, 1.2, 1.6, 2.2, 3.0, 4.0)]
    assert found == sorted(found)


def test_what_moved_is_blurred_though_edges_along_the_movement_are_sharp() -> None:
    for kernel in (np.ones((1, 7)), np.ones((7, 1)), np.eye(7), np.eye(7)[::-1]):
        assert measured(cv2.filter2D(shapes(), -1, kernel / kernel.sum())) > 1.2


def test_noise_changes_little() -> None:
    rng = np.random.default_rng(1)
    for sigma in (0.1, 1.5):
        picture = blurred(shapes(), sigma)
        noisy = np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)
        assert measured(noisy) == pytest.approx(measured(picture), rel=0.35)


def test_contrast_changes_little() -> None:
    picture = blurred(shapes(), 1.2)
    assert measured(picture // 2 + 90) == pytest.approx(measured(picture), rel=0.1)


def test_a_line_of_sharp_text_does_not_make_a_blurred_picture_sharp() -> None:
    picture = blurred(shapes(), 2)
    before = measured(picture)
    cv2.putText(picture, "2026-11-25 12:30:55", (8, 24), cv2.FONT_HERSHEY_PLAIN, 1.3, (255, 255, 255), 1)
    assert measured(picture) == pytest.approx(before, rel=0.15)


def test_bars_above_and_below_do_not_either() -> None:
    picture = blurred(shapes(), 2)
    before = measured(picture)
    picture[:60] = picture[-60:] = 0
    assert measured(picture) > before * 0.6


def test_16_bits_measure_like_8() -> None:
    picture = blurred(shapes(), 1)
    assert measured(picture.astype(np.uint16) * 257) == measured(picture)


def test_large_frames_measure_like_small_ones() -> None:
    large, small = (blurred(shapes(*size), 1.2) for size in ((1440, 2560), (480, 640)))
    assert measured(large) == pytest.approx(measured(small), rel=0.15)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 2), (15, 700), (720, 1280)])
def test_what_has_no_edge_has_no_measure(shape: tuple[int, int]) -> None:
    assert blur_sigma(np.full((*shape, 3), 77, np.uint8)) is None

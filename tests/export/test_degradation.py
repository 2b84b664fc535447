"""Degradations: each blur as strong as was asked, every choice repeated by a seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.blur import convolve_gaussian, shrink_and_enlarge, to_light, to_picture
from export.degradation import ARTICLE, BLURS, Blur, Degradation
from export.leaves import dead_leaves

SCENE = dead_leaves(96, 112, np.random.default_rng(1), leaves=200)


@pytest.mark.parametrize("name", BLURS)
def test_an_even_picture_stays_as_it_is(name: Blur) -> None:
    grey = np.full((40, 40, 3), 137, np.uint8)
    blurred = to_picture(Degradation().blur(name, to_light(grey), np.random.default_rng(0)))
    np.testing.assert_array_equal(blurred, grey)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_a_seed_repeats_a_degradation(seed: int) -> None:
    first, second = (Degradation().apply(SCENE, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == SCENE.shape
    assert first.dtype == np.uint8


def test_a_degradation_without_noise_or_jpeg_leaves_sharp_pictures_alone() -> None:
    harmless = Degradation(kind="sharp", noise=0, jpeg=0)
    np.testing.assert_array_equal(harmless.apply(SCENE, np.random.default_rng(0)), SCENE)


def test_noise_is_as_strong_as_was_asked() -> None:
    grey = np.full((200, 300, 3), 128, np.uint8)
    noisy = Degradation(kind="sharp", noise=1, noise_levels=(3, 3), jpeg=0).apply(grey, np.random.default_rng(0))
    # Levels are whole numbers, which adds a variance of 1/12.
    assert noisy.std() == pytest.approx(np.sqrt(3**2 + 1 / 12), rel=0.02)


def test_the_blur_of_the_article_is_a_gaussian_and_nothing_else() -> None:
    blurred = ARTICLE.apply(SCENE, np.random.default_rng(0))
    np.testing.assert_array_equal(blurred, to_picture(convolve_gaussian(to_light(SCENE), 3.0)))


def test_a_resize_of_one_factor_shrinks_to_that_share_of_the_area() -> None:
    """Factor 4 keeps 1/16 of the area, as in the article."""
    blur = Degradation(kind="resize", resize_factor=(4, 4), linear_light=0, noise=0, jpeg=0)
    spoilt = blur.apply(SCENE, np.random.default_rng(0))
    choices = [to_picture(shrink_and_enlarge(to_light(SCENE), 4, enlarge)) for enlarge in (1, 2)]
    assert any(np.array_equal(spoilt, choice) for choice in choices)


def test_a_mixture_draws_its_blurs_by_weight() -> None:
    mixture = Degradation(weights={"gaussian": 1, "sharp": 3}, linear_light=0, noise=0, jpeg=0)
    sharp = [np.array_equal(mixture.apply(SCENE, np.random.default_rng(seed)), SCENE) for seed in range(200)]
    assert 130 <= sum(sharp) <= 170


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"kind": "gausian"}, "kind"),
        ({"weights": {"gausian": 1.0}}, "gausian"),
        ({"weights": {"gaussian": -1.0}}, "greater than or equal to 0"),
        ({"weights": {"gaussian": 0.0}}, "not all be 0"),
        ({"weights": {}}, "not all be 0"),
        ({"resize_factor": (4, 2)}, "the smaller one first"),
        ({"sigma": 3}, "sigma"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Degradation.model_validate(values)

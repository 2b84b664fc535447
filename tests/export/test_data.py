"""Pairs to learn from: that a crop is what it says, that both sides belong together, and that it repeats."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
import scenes

torch = pytest.importorskip("torch")

from export.blur import Picture, Rng  # noqa: E402
from export.data import (  # noqa: E402
    BlurredPairs,
    Cropping,
    MatchedPairs,
    UnpairedPictures,
)
from export.pictures import halves  # noqa: E402
from export.store import PictureStore  # noqa: E402

AUGMENTS: tuple[Literal["all", "mirror", "none"], ...] = ("all", "mirror", "none")


class Inverted:
    """A degradation that is easily seen: and noisy, so that its randomness shows too."""

    def apply(self, picture: Picture, rng: Rng) -> Picture:
        return (255 - picture) ^ rng.integers(0, 2, picture.shape, np.uint8)


class Unchanged:
    def apply(self, picture: Picture, rng: Rng) -> Picture:
        return picture


def store_of(tmp_path: Path, pictures: list[np.ndarray], name: str = "pictures") -> PictureStore:
    folder = tmp_path / name
    folder.mkdir()
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{number:03d}.png"), picture[..., ::-1])
    store, skipped = PictureStore.build(sorted(folder.iterdir()), tmp_path / f"{name}.u8", 1)
    assert not skipped
    return store


def coordinates(height: int, width: int) -> np.ndarray:
    """Pixels that say where they are: (row, column, row + column)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, (y + x) // 2], -1).astype(np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> PictureStore:
    paths = scenes.write_scenes(tmp_path / "drawn", 4, side=160)
    return PictureStore.build(paths, tmp_path / "drawn.u8", 64)[0]


# What an item is.


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("kind", ["blurred", "matched", "unpaired"])
def test_an_item_depends_on_the_seed_and_its_number_alone(store: PictureStore, kind: str, augment: str) -> None:
    def dataset(length: int, seed: int):
        cropping = Cropping(32, 8, augment)
        if kind == "blurred":
            return BlurredPairs(store, Inverted(), cropping, length, seed)
        if kind == "matched":
            return MatchedPairs(store, store, cropping, length, seed)
        return UnpairedPictures(store, store, cropping, length, seed, degradation=Inverted())

    whole, resumed, other = dataset(100, 7), dataset(1000, 7), dataset(100, 8)
    asked = {index: resumed[index] for index in (41, 3, 99)}
    for index in range(100):
        item = whole[index]
        if index in asked:
            assert all(torch.equal(a, b) for a, b in zip(item, asked[index], strict=True))
    assert any(not torch.equal(whole[index][0], other[index][0]) for index in range(10))


@pytest.mark.parametrize("margin_px", [0, 8])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_both_sides_are_squares_of_bytes_that_can_be_batched(
    store: PictureStore, augment: Literal["all", "mirror", "none"], margin_px: int
) -> None:
    cropping = Cropping(32, margin_px, augment)
    datasets = (
        BlurredPairs(store, Inverted(), cropping, 30, 0),
        MatchedPairs(store, store, cropping, 30, 0),
        UnpairedPictures(store, store, cropping, 30, 0),
    )
    for dataset in datasets:
        for index in range(30):
            for side in dataset[index]:
                assert (side.shape, side.dtype, side.is_contiguous()) == ((32, 32, 3), torch.uint8, True)


def test_a_crop_may_be_the_whole_picture(tmp_path: Path) -> None:
    store = store_of(tmp_path, [coordinates(32, 32)])
    for index in range(8):
        pair = MatchedPairs(store, store, Cropping(32, 0, "mirror"), 8, 0)[index]
        assert any(np.array_equal(pair[1], side) for side in (coordinates(32, 32), coordinates(32, 32)[:, ::-1]))
        pair[1].zero_()
    assert np.array_equal(store.picture(0), coordinates(32, 32))


def test_the_blur_is_made_of_the_very_crop(store: PictureStore) -> None:
    for index in range(40):
        blurred, sharp = BlurredPairs(store, Inverted(), Cropping(32, 8), 40, 0)[index]
        assert (255 - blurred.int() - sharp.int()).abs().max() <= 1


def test_a_blur_sees_the_margin_around_the_crop(store: PictureStore) -> None:
    seen: list[tuple[int, ...]] = []

    class Looking:
        def apply(self, picture: Picture, rng: Rng) -> Picture:
            seen.append(picture.shape)
            return picture

    blurred, sharp = BlurredPairs(store, Looking(), Cropping(32, 8), 1, 0)[0]
    assert seen == [(48, 48, 3)]
    assert torch.equal(blurred, sharp)


def test_without_augmentation_the_crop_is_the_centre(tmp_path: Path) -> None:
    store = store_of(tmp_path, [coordinates(100, 120)])
    _, sharp = BlurredPairs(store, Unchanged(), Cropping(32, 8, "none"), 5, 0)[3]
    assert np.array_equal(sharp.numpy(), coordinates(100, 120)[34:66, 44:76])


def test_mirroring_keeps_scale_and_upright_and_reaches_every_place(tmp_path: Path) -> None:
    store = store_of(tmp_path, [coordinates(40, 48)])
    dataset = BlurredPairs(store, Unchanged(), Cropping(32, 0, "mirror"), 400, 0)
    places, mirrored = set(), 0
    for index in range(400):
        crop = dataset[index][1].numpy().astype(int)
        turned = crop[0, 0, 1] > crop[0, -1, 1]
        mirrored += turned
        upright = crop[:, ::-1] if turned else crop
        top, left = upright[0, 0, :2]
        places.add((int(top), int(left)))
        assert np.array_equal(upright, coordinates(40, 48)[top : top + 32, left : left + 32])
    assert len(places) > 0.9 * 9 * 17
    assert 150 < mirrored < 250


def test_full_augmentation_turns_mirrors_scales_and_changes_light_and_colour(store: PictureStore) -> None:
    dataset = BlurredPairs(store, Unchanged(), Cropping(48), 300, 0)
    crops = [dataset[index][1].numpy().astype(int) for index in range(300)]
    grey = sum(bool((crop.max(axis=2) == crop.min(axis=2)).all()) for crop in crops)
    assert 5 <= grey <= 45
    dark = sum(crop.max() < 210 for crop in crops)
    assert dark >= 10


def test_a_picture_smaller_than_a_crop_is_refused(store: PictureStore) -> None:
    with pytest.raises(ValueError, match="at least 176 px on each side, got 160"):
        BlurredPairs(store, Inverted(), Cropping(128, 24), 1, 0)


# Pairs that are given.


@pytest.mark.parametrize("augment", AUGMENTS)
def test_matched_pairs_are_cut_at_the_same_place_in_the_same_way(
    tmp_path: Path, augment: Literal["all", "mirror", "none"]
) -> None:
    sharp = [coordinates(100, 120), coordinates(90, 100)]
    stores = store_of(tmp_path, [picture + np.uint8(1) for picture in sharp], "blurred"), store_of(tmp_path, sharp)
    dataset = MatchedPairs(*stores, Cropping(32, 0, augment), 300, 0)
    for index in range(300):
        one, other = (side.int() for side in dataset[index])
        assert (one - other).min() >= 0
        assert (one - other).max() <= 1
        assert (one - other).float().mean() > 0.1  # in low light, a level is less than one


def test_stores_of_different_pictures_are_no_pairs(tmp_path: Path) -> None:
    one, other = store_of(tmp_path, [coordinates(64, 64)], "one"), store_of(tmp_path, [coordinates(64, 65)], "other")
    with pytest.raises(ValueError, match="same sizes"):
        MatchedPairs(one, other, Cropping(32), 1, 0)


# No pairs at all.


@pytest.mark.parametrize("degraded", [True, False])
def test_unpaired_sides_are_of_different_pictures_drawn_independently(tmp_path: Path, degraded: bool) -> None:
    flat = [np.full((40, 40, 3), 10 * number, np.uint8) for number in range(1, 9)]
    blurred, sharp = store_of(tmp_path, flat[:4], "blurred"), store_of(tmp_path, flat[4:], "sharp")
    dataset = UnpairedPictures(
        blurred, sharp, Cropping(32, 0, "mirror"), 400, 0, degradation=Inverted() if degraded else None
    )
    drawn = set()
    for index in range(400):
        left, right = (int(side[0, 0, 0]) for side in dataset[index])
        drawn.add((round((255 - left if degraded else left) / 10), right // 10))
    assert drawn == {(one, other) for one in range(1, 5) for other in range(5, 9)}


def test_one_folder_gives_two_halves_that_stay_when_files_are_added() -> None:
    before = [Path(f"/data/x/{number}.png") for number in range(0, 400, 2)]
    after = [Path(f"/elsewhere/x/{number}.png") for number in range(400)]
    (a, b), (more_a, more_b) = halves(before), halves(after)
    assert len(a) + len(b) == 200
    assert min(len(a), len(b)) > 70
    assert {path.name for path in a} <= {path.name for path in more_a}
    assert {path.name for path in b} <= {path.name for path in more_b}

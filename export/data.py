"""Training pairs from stored pictures: blurred on the fly, matched one by one, or not paired at all.

Knows crops and what is done to them; nothing of files, networks or of how a pair is learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .blur import Picture, Rng
from .store import PictureStore


class Degrades(Protocol):
    """What makes a blurred picture out of a sharp one, both uint8 (H, W, 3)."""

    def apply(self, picture: Picture, rng: Rng, /) -> Picture: ...


Augment = Literal["all", "zoom", "mirror", "none"]


@dataclass(frozen=True)
class Cropping:
    """How a square of `patch` px is taken out of a picture.

    margin_px: context around the crop that a blur may look at; 0: the blur itself mirrors the border.
    augment: `all`: at random scale, turned, mirrored, at times grey, recoloured or dark; `zoom`: at a random place
    and scale, between full scale and the whole picture, mirrored in half of the cases; `mirror`: the same at
    full scale only; `none`: the centre, always.
    """

    patch: int
    margin_px: int = 0
    augment: Augment = "all"

    @property
    def extent_px(self) -> int:
        """The side of a crop with its margin: no picture may be smaller."""
        return self.patch + 2 * self.margin_px


@dataclass(frozen=True)
class _Cut:
    """One crop: where it lies and what is done to it, so that two pictures can get the same."""

    size: int
    side: int
    top: int
    left: int
    turns: int = 0
    mirrored: bool = False
    grey: bool = False
    channels: tuple[int, ...] = (0, 1, 2)
    light: float = 1.0

    @classmethod
    def draw(cls, height: int, width: int, cropping: Cropping, rng: Rng) -> _Cut:
        """A crop with its margin out of a picture of this size."""
        size, augment = cropping.extent_px, cropping.augment
        if augment == "none":
            return cls(size, size, (height - size) // 2, (width - size) // 2)
        # Scaling down makes real pictures sharper and gives more of them.
        side = size
        if augment == "all":
            side = int(size * min(_SCALES[int(rng.integers(len(_SCALES)))], min(height, width) / size))
        elif augment == "zoom":
            side = int(rng.integers(size, min(height, width) + 1))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        if augment != "all":
            return cls(size, side, top, left, mirrored=rng.random() < 0.5)
        turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
        colour = rng.random()
        channels = tuple(int(c) for c in rng.permutation(3)) if 0.07 <= colour < 0.3 else (0, 1, 2)
        light = float(rng.uniform(0.2, 0.8)) if rng.random() < 0.1 else 1.0
        return cls(size, side, top, left, turns, mirrored, colour < 0.07, channels, light)

    def of(self, picture: Picture) -> Picture:
        """The crop, (size, size, 3), contiguous."""
        crop = picture[self.top : self.top + self.side, self.left : self.left + self.side]
        if self.side != self.size:
            crop = cv2.resize(crop, (self.size, self.size), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        # OpenCV turns, mirrors and permutes several times as fast as copies of strided views.
        if self.turns:
            crop = cv2.rotate(crop, _TURNS[self.turns])  # type: ignore[assignment]
        if self.mirrored:
            crop = cv2.flip(crop, 1)  # type: ignore[assignment]
        if self.grey:
            crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)  # type: ignore[assignment]
        elif self.channels != (0, 1, 2):
            permuted = np.empty_like(crop, subok=False)
            cv2.mixChannels([crop], [permuted], [n for pair in zip(self.channels, range(3), strict=True) for n in pair])
            crop = permuted
        if self.light != 1.0:
            crop = cv2.LUT(crop, (_LEVELS * np.float32(self.light)).astype(np.uint8))  # type: ignore[assignment]
        # What is still a view of the file is read-only, and no tensor can be made of it.
        return crop if crop.flags.writeable else np.array(crop)


_TURNS = (-1, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)
_LEVELS = np.arange(256, dtype=np.float32)
_SCALES = (1.0, 1.0, 1.0, 1.4, 2.0)


def _inner(picture: Picture, margin_px: int) -> Tensor:
    """Without its margin, as a tensor."""
    inner = slice(margin_px, picture.shape[0] - margin_px)
    return torch.from_numpy(np.ascontiguousarray(picture[inner, inner]))


def _draw(store: PictureStore, cropping: Cropping, rng: Rng) -> tuple[int, _Cut]:
    index = int(rng.integers(len(store)))
    return index, _Cut.draw(*store.sizes[index], cropping, rng)


def _require_extent(store: PictureStore, cropping: Cropping) -> None:
    least = min(min(size) for size in store.sizes)
    if least < cropping.extent_px:
        raise ValueError(f"{store.path}: pictures must be at least {cropping.extent_px} px on each side, got {least}")


class BlurredPairs(Dataset[tuple[Tensor, Tensor]]):
    """(blurred, sharp) uint8 crops, (patch, patch, 3) each; the blur is made here, by `degradation`.

    Item `i` depends on `seed` and `i` alone, so a run that resumes at step s asks for the very items that it
    would have asked for uninterrupted.
    """

    def __init__(self, store: PictureStore, degradation: Degrades, cropping: Cropping, length: int, seed: int) -> None:
        _require_extent(store, cropping)
        self.store, self.degradation, self.cropping, self.length, self.seed = store, degradation, cropping, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        number, cut = _draw(self.store, self.cropping, rng)
        sharp = cut.of(self.store.picture(number))
        blurred = self.degradation.apply(sharp, rng)
        return _inner(blurred, self.cropping.margin_px), _inner(sharp, self.cropping.margin_px)


class MatchedPairs(Dataset[tuple[Tensor, Tensor]]):
    """(blurred, sharp) uint8 crops, (patch, patch, 3) each, of two stores picture by picture; no blur is made.

    Both get the same crop and the same augmentation. Item `i` depends on `seed` and `i` alone.
    """

    def __init__(self, blurred: PictureStore, sharp: PictureStore, cropping: Cropping, length: int, seed: int) -> None:
        if blurred.sizes != sharp.sizes:
            raise ValueError(f"{blurred.path} and {sharp.path}: must hold pictures of the same sizes, one by one")
        _require_extent(sharp, cropping)
        self.blurred, self.sharp, self.cropping, self.length, self.seed = blurred, sharp, cropping, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        number, cut = _draw(self.sharp, self.cropping, rng)
        blurred, sharp = (cut.of(store.picture(number)) for store in (self.blurred, self.sharp))
        return _inner(blurred, self.cropping.margin_px), _inner(sharp, self.cropping.margin_px)


class UnpairedPictures(Dataset[tuple[Tensor, Tensor]]):
    """(a blurred crop, a crop of some other sharp picture), uint8 (patch, patch, 3) each.

    blurred: a store of pictures that are blurred, or, with a `degradation`, of sharp ones that are blurred here;
    other pictures than those of `sharp`, else pairs might be learnt. Item `i` depends on `seed` and `i` alone.
    """

    def __init__(
        self,
        blurred: PictureStore,
        sharp: PictureStore,
        cropping: Cropping,
        length: int,
        seed: int,
        *,
        degradation: Degrades | None = None,
    ) -> None:
        for store in (blurred, sharp):
            _require_extent(store, cropping)
        self.blurred, self.sharp, self.cropping, self.length, self.seed = blurred, sharp, cropping, length, seed
        self.degradation = degradation

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        crops = []
        for store in (self.blurred, self.sharp):
            number, cut = _draw(store, self.cropping, rng)
            crops.append(cut.of(store.picture(number)))
        if self.degradation is not None:
            crops[0] = self.degradation.apply(crops[0], rng)
        return _inner(crops[0], self.cropping.margin_px), _inner(crops[1], self.cropping.margin_px)

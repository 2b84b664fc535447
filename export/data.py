"""Training pairs, made on the fly from decoded pictures.

Knows arrays and one file of pixels; nothing of networks or of how a pair is learnt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .blur import MARGIN_PX, Degradation, Picture, Rng
from .errors import ExportError
from .pictures import read_picture

NDArrayU8 = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class PictureStore:
    """Decoded pictures in one memory-mapped file: loaders that run beside the training step share it."""

    path: Path
    pixels: NDArrayU8
    sizes: tuple[tuple[int, int], ...]
    offsets: tuple[int, ...]

    @classmethod
    def build(cls, pictures: Sequence[Path], target: Path, smallest_px: int) -> tuple[PictureStore, list[str]]:
        """Decode `pictures` into `target`; returns the store and one line for every picture passed over."""
        sizes: list[tuple[int, int]] = []
        skipped: list[str] = []
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("wb") as file:
                for path in pictures:
                    try:
                        picture = read_picture(path)
                    except ExportError as error:
                        skipped.append(str(error))
                        continue
                    if min(picture.shape[:2]) < smallest_px:
                        skipped.append(
                            f"{path}: pictures must be at least {smallest_px} px on each side,"
                            f" got {picture.shape[1]}x{picture.shape[0]}"
                        )
                        continue
                    sizes.append((picture.shape[0], picture.shape[1]))
                    file.write(picture.tobytes())
            if not sizes:
                partial.unlink()
                first = f"; {skipped[0]}" if skipped else ""
                raise ExportError(f"no usable picture among {len(pictures)} found{first}")
            # Renamed, not written over: another run in this folder may have the old one mapped.
            partial.replace(target)
            target.with_suffix(".json").write_text(json.dumps(sizes), encoding="utf-8")
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ExportError(f"{target}: not writable ({error.strerror})") from error
        return cls.open(target), skipped

    @classmethod
    def open(cls, target: Path) -> PictureStore:
        """Map a store that `build` wrote."""
        sizes = tuple((int(h), int(w)) for h, w in json.loads(target.with_suffix(".json").read_text(encoding="utf-8")))
        offsets = tuple(int(end) for end in np.cumsum([0] + [h * w * 3 for h, w in sizes]))
        return cls(target, np.memmap(target, np.uint8, "r"), sizes, offsets)

    def __reduce__(self) -> tuple[Callable[[Path], PictureStore], tuple[Path]]:
        # To a loader process go the name and not the pixels.
        return PictureStore.open, (self.path,)

    def __len__(self) -> int:
        return len(self.sizes)

    def crop(self, index: int, size: int, rng: Rng) -> Picture:
        """A random square of `size` px, at random scale, mirrored and turned; a third of it grey or recoloured."""
        height, width = self.sizes[index]
        picture = self.pixels[self.offsets[index] : self.offsets[index + 1]].reshape(height, width, 3)
        # Scaling down makes real pictures sharper and gives more of them.
        scale = min(float(rng.choice((1.0, 1.0, 1.0, 1.4, 2.0))), min(height, width) / size)
        side = int(size * scale)
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        crop = picture[top : top + side, left : left + side]
        if side != size:
            crop = cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        crop = np.rot90(crop, int(rng.integers(4)))
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        colour = rng.random()
        if colour < 0.07:
            grey = cv2.cvtColor(np.ascontiguousarray(crop), cv2.COLOR_RGB2GRAY)
            crop = np.repeat(grey[..., None], 3, axis=2)
        elif colour < 0.3:
            crop = crop[..., rng.permutation(3)]
        if rng.random() < 0.1:
            crop = (crop * np.float32(rng.uniform(0.2, 0.8))).astype(np.uint8)  # low light
        return np.ascontiguousarray(crop)


class PairDataset(Dataset[tuple[Tensor, Tensor]]):
    """(blurred, sharp) uint8 crops, (patch, patch, 3) each; item `i` depends on `seed` and `i` alone.

    So a run that resumes at step s asks for the very items that it would have asked for uninterrupted.
    """

    def __init__(self, store: PictureStore, degradation: Degradation, patch: int, length: int, seed: int) -> None:
        self.store, self.degradation, self.patch, self.length, self.seed = store, degradation, patch, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        picture = self.store.crop(int(rng.integers(len(self.store))), self.patch + 2 * MARGIN_PX, rng)
        inner = slice(MARGIN_PX, MARGIN_PX + self.patch)
        blurred = self.degradation.apply(picture, rng)[inner, inner]
        return torch.from_numpy(np.ascontiguousarray(blurred)), torch.from_numpy(
            np.ascontiguousarray(picture[inner, inner])
        )

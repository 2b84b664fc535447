"""Measure what a model does to pictures whose sharp original is known.

Knows pictures, blurs and engines; nothing of networks, so it measures exactly what ships.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np

from engine.protocol import Engine

from .blur import CASES, MARGIN_PX, Picture, Rng
from .errors import ExportError
from .metrics import SSIM_WINDOW_PX, colour_shift, psnr, ssim
from .pictures import find_pictures, read_picture, read_split, split_by_origin

log = logging.getLogger(__name__)

Cases = Mapping[str, Callable[[Picture, Rng], Picture]]
SHARP = "sharp"

View = Callable[[Picture], Picture]


def grey(picture: Picture) -> Picture:
    """As an infrared camera sees it: the luma in all three channels."""
    return np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def low_light(picture: Picture) -> Picture:
    """A quarter of the levels."""
    return ((picture.astype(np.uint16) + 2) // 4).astype(np.uint8)


VIEWS: Mapping[str, View] = {"grey": grey, "low light": low_light}
"""How sharp pictures can be changed before they are blurred; what is measured is what the model sees."""


@dataclass(frozen=True)
class Blurred:
    """A picture of `folder`, sharp, and blurred as `case` says with the random numbers of `seed`."""

    folder: str
    name: str
    case: str
    seed: tuple[int, ...]
    sharp: Picture
    blurred: Picture

    def with_restored(self, restored: Picture) -> Triple:
        return Triple(self.folder, self.name, self.case, self.sharp, self.blurred, restored)


@dataclass(frozen=True)
class Triple:
    """A picture of `folder`, sharp, blurred as `case` says, and restored."""

    folder: str
    name: str
    case: str
    sharp: Picture
    blurred: Picture
    restored: Picture


@dataclass(frozen=True)
class Score:
    """One picture under one blur, against its sharp original."""

    folder: str
    name: str
    case: str
    blurred_db: float
    restored_db: float
    blurred_ssim: float
    restored_ssim: float
    colour_shift: float

    @property
    def score_db(self) -> float:
        """The gain over the blurred input; for `sharp`, the PSNR at which the picture is kept."""
        return self.restored_db if self.case == SHARP else self.restored_db - self.blurred_db

    @classmethod
    def of(cls, triple: Triple) -> Score:
        return cls(
            folder=triple.folder,
            name=triple.name,
            case=triple.case,
            blurred_db=psnr(triple.sharp, triple.blurred),
            restored_db=psnr(triple.sharp, triple.restored),
            blurred_ssim=ssim(triple.sharp, triple.blurred),
            restored_ssim=ssim(triple.sharp, triple.restored),
            colour_shift=colour_shift(triple.sharp, triple.restored),
        )


def development_pictures(folders: Sequence[Path]) -> list[Path]:
    """The pictures of the development split below `folders`, or all pictures there if the split names none."""
    found = find_pictures(folders)
    chosen = split_by_origin(found, read_split())[1]
    if not chosen:
        log.warning("the development split names none of these pictures: all are used, also those trained on")
        chosen = found
    if not chosen:
        raise ExportError(f"{', '.join(map(str, folders))}: no picture found")
    return chosen


def evaluate_model(
    engine: Engine,
    pictures: Sequence[Path],
    *,
    cases: Cases = CASES,
    size: int | None = 256,
    views: Sequence[str] = (),
) -> tuple[Score, ...]:
    """Blur each picture in every way of `cases`, restore it, and compare: one score each, picture by picture.

    Crops of `size` px at the centre are compared; whole pictures if None, or where they are smaller. `views`
    are names of `VIEWS`, applied in their order. The random part of a blur depends on the picture's name and
    folder and on the case alone. ExportError for a picture that does not decode or is too small for SSIM.
    """
    return tuple(
        Score.of(sample.with_restored(restore(engine, sample.blurred)))
        for sample in blurred_pictures(pictures, cases=cases, size=size, views=views)
    )


def blurred_pictures(
    pictures: Sequence[Path], *, cases: Cases = CASES, size: int | None = 256, views: Sequence[str] = ()
) -> Iterator[Blurred]:
    """Each picture blurred in every way of `cases`: what `evaluate_model` restores, in the same order."""
    for path in pictures:
        sharp = _read(path, size, views)
        for case in cases:
            yield _blurred(path, sharp, case, cases, size)


def restored_triples(
    engine: Engine,
    pictures: Sequence[Path],
    *,
    cases: Cases = CASES,
    size: int | None = 256,
    views: Sequence[str] = (),
) -> Iterator[Triple]:
    """The pictures themselves, as `evaluate_model` compares them, one blur each: `cases` take turns."""
    for path, case in zip(pictures, cycle(cases), strict=False):
        sample = _blurred(path, _read(path, size, views), case, cases, size)
        yield sample.with_restored(restore(engine, sample.blurred))


def _read(path: Path, size: int | None, views: Sequence[str]) -> Picture:
    """The picture, or its centre with a margin for the blur where the picture has one."""
    picture = read_picture(path)
    if min(picture.shape[:2]) < SSIM_WINDOW_PX:
        raise ExportError(
            f"{path}: pictures must be at least {SSIM_WINDOW_PX} px on each side,"
            f" got {picture.shape[1]}x{picture.shape[0]}"
        )
    picture = _centre(picture, None if size is None else size + 2 * MARGIN_PX)
    for view in views:
        picture = VIEWS[view](picture)
    return picture


def _centre(picture: Picture, size: int | None) -> Picture:
    """The middle `size` x `size` px, or as much of that as there is."""
    if size is None:
        return picture
    top, left = (max(0, (side - size) // 2) for side in picture.shape[:2])
    return np.ascontiguousarray(picture[top : top + size, left : left + size])


def _blurred(path: Path, sharp: Picture, case: str, cases: Cases, size: int | None) -> Blurred:
    folder = path.parent.name
    seed = tuple(zlib.crc32(os.fsencode(text)) for text in (f"{folder}/{path.name}", case))
    blurred = cases[case](sharp, np.random.default_rng(seed))
    return Blurred(folder, path.name, case, seed, _centre(sharp, size), _centre(blurred, size))


def restore(engine: Engine, picture: Picture) -> Picture:
    """`picture` (H, W, 3) as `engine` restores it in one piece; EngineError if it is larger than a tile."""
    height, width = picture.shape[:2]
    spec = engine.spec
    padded = spec.tile if spec.fixed_tile else tuple(-(-side // spec.stride) * spec.stride for side in (height, width))
    bottom, right = max(0, padded[0] - height), max(0, padded[1] - width)
    frame = cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REFLECT_101)
    with engine.submit(np.asarray(frame, np.uint8)[None]).result() as result:
        return result.frames[0, :height, :width].copy()

"""The pictures of a folder as the frames of a stream.

Knows folders; reading a picture is `daemon.pictures`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import cv2
import numpy as np

from .errors import SourceError
from .frame import Frame, Pixels
from .pictures import SUFFIXES, PictureSource

RATES: Final = (0.001, 1000)
_MOST_DAMAGE_LINES: Final = 20


class FolderSource:
    """The pictures of a folder in the natural order of their names, 2 before 10; a `daemon.source.Source`.

    folder: looked through at once, so that SourceError comes from here; not what lies in folders below it.
    rate: pictures a second.

    Frames are upright, RGB and uint8 whatever is stored, each in its own size. A damaged picture is passed over and
    described in `damage`; it leaves a gap in the times, and none in `seq`.
    """

    live: Final = False

    def __init__(self, folder: Path, *, stream: str = "folder", rate: Fraction | float = 25) -> None:
        self.path, self.name = folder, stream
        self.damage: list[str] = []
        """One line for each picture that could not be read; complete when the iteration is."""
        if not RATES[0] <= rate <= RATES[1]:
            raise SourceError(f"{folder}: the rate must be from {RATES[0]} to {RATES[1]}, got {rate}")
        self.rate = Fraction(rate).limit_denominator(1_000_000)
        self._pictures = _pictures_of(folder)
        self._closed = False
        self.frames_expected = len(self._pictures)

    def __iter__(self) -> Iterator[Frame]:
        seq = damaged = 0
        for number, path in enumerate(self._pictures):
            if self._closed:
                return
            try:
                # A stream has no place for EXIF: the picture is turned here.
                (frame,) = PictureSource(path, stream=self.name, upright=True)
            except SourceError as error:
                damaged += 1
                if damaged <= _MOST_DAMAGE_LINES:
                    self.damage.append(str(error))
                continue
            yield replace(
                frame,
                seq=seq,
                pts=number,
                time_base=1 / self.rate,
                captured_ns=time.time_ns(),
                pixels=_of_8_bits(frame.pixels),
                origin=None,
            )
            seq += 1
        if damaged > _MOST_DAMAGE_LINES:
            self.damage.append(f"{damaged - _MOST_DAMAGE_LINES} more pictures could not be read")
        if not seq:
            raise SourceError(
                f"{self.path}: must have at least one picture that can be read, got none ({self.damage[0]})"
            )

    def close(self) -> None:
        """End the iteration before the next picture."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _of_8_bits(pixels: Pixels) -> Pixels:
    """What a stream carries."""
    return pixels if pixels.dtype == np.uint8 else np.asarray(cv2.convertScaleAbs(pixels, alpha=1 / 257), np.uint8)


def _pictures_of(folder: Path) -> list[Path]:
    if not folder.exists():
        raise SourceError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise SourceError(f"{folder}: must be a folder, got a file")
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read ({error.strerror})") from error
    # Names with a dot before them are not pictures: macOS puts ._a.jpg beside each a.jpg.
    pictures = [path for path in entries if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not pictures:
        raise SourceError(
            f"{folder}: must have at least one picture ({', '.join(SUFFIXES)}), got {len(entries)} other files"
            if entries
            else f"{folder}: must have at least one picture, got an empty folder"
        )
    return sorted(pictures, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[str | int]:
    """`a10.png` as ["a", 10, ".png"]; text and numbers alternate, so that two names always compare."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name.casefold())]

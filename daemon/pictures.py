"""Single pictures as a source of one frame and as a sink for one, with their transparency, EXIF and colour profile.

Knows how a picture becomes a frame and a frame a picture; nothing of what becomes of the frame between.

Pixels stay as they are stored, and the EXIF orientation goes with them: the result is turned as the source was. Only
TIFF is read upright, and then needs no turning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import SinkError, SourceError
from .frame import Frame, Pixels
from .part_file import PartFile
from .picture_data import DEEP, JPEG, WITH_METADATA, Metadata, Picture, PictureError, decode, encode, to_8_bits

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class _Rest:
    """What of a picture is not its colours. alpha: (H, W), of the colours' type."""

    alpha: NDArray[Any] | None
    grey: bool
    metadata: Metadata


class PictureSource:
    """The one frame of a picture file; a `daemon.source.Source`. Raises SourceError when it is made.

    upright: turn the picture by its EXIF orientation, for a sink that cannot store that; transparency is lost.
    """

    live: Final = False
    frames_expected: Final = 1

    def __init__(self, path: Path, *, stream: str = "picture", upright: bool = False) -> None:
        self.path, self.name = path, stream
        self.damage: list[str] = []
        self.warnings: list[str] = []
        began = time.monotonic_ns()
        pixels, rest = self._read(path, upright)
        self.depth = 8 * pixels.itemsize
        self._frame = Frame(
            stream=stream,
            seq=0,
            pts=0,
            time_base=Fraction(1),
            captured_ns=time.time_ns(),
            arrived_ns=time.monotonic_ns(),
            pixels=pixels,
            spent_ns={"decode": time.monotonic_ns() - began},
            origin=rest,
        )

    def __iter__(self) -> Iterator[Frame]:
        yield self._frame

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _read(self, path: Path, upright: bool) -> tuple[Pixels, _Rest]:
        try:
            picture = decode(path.read_bytes(), upright=upright)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
        except PictureError as error:
            raise SourceError(f"{path}: {error}") from error
        if picture.pages > 1:
            self.warnings.append(f"only the first of {picture.pages} pages or animation frames is restored and kept")
        image = picture.image
        channels = 1 if image.ndim == 2 else image.shape[2]
        rgb = cv2.cvtColor(image, {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}[channels])
        alpha = np.ascontiguousarray(image[..., 3]) if channels == 4 else None
        return rgb, _Rest(alpha, channels == 1, picture.metadata)  # type: ignore[return-value]


class PictureWriter:
    """Writes one restored picture; a `daemon.sink.Sink` like `FileWriter`, with `commit` after `close`.

    quality: of JPEG and WebP, 1 to 100.
    """

    def __init__(self, source: Path, target: Path, *, quality: int = 95, overwrite: bool = False) -> None:
        self.target = target
        self.notes: list[str] = []
        self.frames = 0
        self._suffix, self._quality = target.suffix.lower(), quality
        if self._suffix not in SUFFIXES:
            raise SinkError(f"{target}: a picture's name must end in one of {', '.join(SUFFIXES)}")
        self._part = PartFile(target, source=source, overwrite=overwrite)

    def lend(self, frame: Frame) -> Pixels:
        return np.empty_like(frame.pixels)

    def send(self, frame: Frame) -> None:
        rest = frame.origin if isinstance(frame.origin, _Rest) else _Rest(None, False, ())
        image: Any = cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2GRAY if rest.grey else cv2.COLOR_RGB2BGR)
        if rest.alpha is not None:
            if self._suffix in JPEG:
                self.notes.append(f"transparency is lost: {self._suffix} has none")
            else:
                image = np.dstack([image, rest.alpha])
        if image.dtype != np.uint8 and self._suffix not in DEEP:
            self.notes.append(f"written with 8 bits a colour, not 16: {self._suffix} has no more")
            image = to_8_bits(image)
        try:
            self._part.path.write_bytes(encode(Picture(image, rest.metadata), self._suffix, self._quality))
        except PictureError as error:
            raise SinkError(f"{self.target}: {error}") from error
        except OSError as error:
            raise SinkError(f"{self.target}: cannot be written ({error.strerror})") from error
        self.frames += 1

    def close(self) -> None:
        """The picture is complete once sent."""

    def commit(self) -> None:
        """Give the picture its name. Raises SinkError if none was sent."""
        if not self.frames:
            raise SinkError(f"{self.target}: no picture was restored")
        self._part.commit()

    def abandon(self) -> None:
        """Nothing to stop: a picture is written at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._part.discard()


def keeps_orientation(target: Path) -> bool:
    """Whether a picture of this name can say how it must be turned."""
    return target.suffix.lower() in WITH_METADATA

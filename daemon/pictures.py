"""Single pictures as a source of one frame and as a sink for one, with their transparency, EXIF and colour profile.

Knows picture files; nothing of what becomes of the frame between.

Pixels stay as they are stored, and the EXIF orientation goes with them: the result is turned as the source was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import SinkError, SourceError
from .frame import Frame
from .part_file import PartFile

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
MAX_PIXELS: Final = 16384 * 16384
_WITH_METADATA: Final = (".png", ".jpg", ".jpeg", ".webp")
_WITHOUT_ALPHA: Final = (".jpg", ".jpeg")


@dataclass(frozen=True)
class _Rest:
    """What of a picture is not its colours. alpha: (H, W); metadata: pairs of OpenCV's type and the bytes."""

    alpha: NDArray[np.uint8] | None
    grey: bool
    metadata: tuple[tuple[int, NDArray[np.uint8]], ...]


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

    def _read(self, path: Path, upright: bool) -> tuple[NDArray[np.uint8], _Rest]:
        try:
            data = np.frombuffer(path.read_bytes(), np.uint8)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
        image, kinds, blocks = _decode(path, data, cv2.IMREAD_COLOR if upright else cv2.IMREAD_UNCHANGED)
        if (pages := cv2.imcount(str(path))) > 1:
            self.warnings.append(f"only the first of {pages} pages or animation frames is restored and kept")
        if image.dtype == np.uint16:
            self.warnings.append("restored at 8 bits: the picture has 16")
            image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if image.dtype != np.uint8:
            raise SourceError(f"{path}: a picture must have 8 or 16 bits a colour, got {image.dtype}")
        channels = 1 if image.ndim == 2 else image.shape[2]
        rgb = cv2.cvtColor(image, {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}[channels])
        alpha = np.ascontiguousarray(image[..., 3]) if channels == 4 else None
        metadata = () if upright else tuple(zip(kinds, blocks, strict=True))
        kept = tuple((kind, block) for kind, block in metadata if _describes_rgb(kind, block))
        return np.asarray(rgb, np.uint8), _Rest(alpha, channels == 1, kept)


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

    def lend(self, frame: Frame) -> NDArray[np.uint8]:
        return np.empty(frame.pixels.shape, np.uint8)

    def send(self, frame: Frame) -> None:
        rest = frame.origin if isinstance(frame.origin, _Rest) else _Rest(None, False, ())
        image = cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2GRAY if rest.grey else cv2.COLOR_RGB2BGR)
        if rest.alpha is not None:
            if self._suffix in _WITHOUT_ALPHA:
                self.notes.append(f"transparency is lost: {self._suffix} has none")
            else:
                image = np.dstack([image, rest.alpha])
        try:
            self._part.path.write_bytes(self._encode(image, rest.metadata))
        except cv2.error as error:
            raise SinkError(f"{self.target}: cannot be encoded ({error.err})") from error
        except OSError as error:
            raise SinkError(f"{self.target}: cannot be written ({error.strerror})") from error
        self.frames += 1

    def _encode(self, image: NDArray[Any], metadata: Sequence[tuple[int, NDArray[np.uint8]]]) -> bytes:
        parameters = {
            ".jpg": [cv2.IMWRITE_JPEG_QUALITY, self._quality],
            ".jpeg": [cv2.IMWRITE_JPEG_QUALITY, self._quality],
            ".webp": [cv2.IMWRITE_WEBP_QUALITY, self._quality],
        }.get(self._suffix, [])
        if metadata and self._suffix in _WITH_METADATA:
            kinds, blocks = zip(*metadata, strict=True)
            done, data = cv2.imencodeWithMetadata(self._suffix, image, kinds, blocks, parameters)
        else:
            done, data = cv2.imencode(self._suffix, image, parameters)
        if not done:
            raise SinkError(f"{self.target}: cannot be encoded, {image.shape[1]}x{image.shape[0]}")
        return data.tobytes()

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
    return target.suffix.lower() in _WITH_METADATA


def _decode(
    path: Path, data: NDArray[np.uint8], flags: int
) -> tuple[NDArray[Any], Sequence[int], Sequence[NDArray[np.uint8]]]:
    image = None
    if data.size:
        try:
            image, kinds, blocks = cv2.imdecodeWithMetadata(data, flags)
        except cv2.error as error:
            if "CV_IO_MAX_IMAGE" in str(error):
                raise SourceError(f"{path}: a picture must have at most {2**30} pixels") from error
    if image is None:
        raise SourceError(f"{path}: must be a picture, got a file that is damaged or of another kind")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise SourceError(f"{path}: a picture must have at most {MAX_PIXELS} pixels, got {size}")
    return image, [int(kind) for kind in kinds], [np.asarray(block, np.uint8) for block in blocks]


def _describes_rgb(kind: int, block: NDArray[np.uint8]) -> bool:
    """False for the colour profile of a CMYK picture, which is read as RGB."""
    return kind != cv2.IMAGE_METADATA_ICCP or bytes(block.tobytes()[16:20]) in (b"RGB ", b"GRAY")

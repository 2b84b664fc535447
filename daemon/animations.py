"""Animated pictures (GIF, WebP, PNG) as a source of frames and as a sink: their times, how often they are shown, and
their transparency stay.

Knows animations; nothing of what becomes of the frames between.

Frames are taken as they are seen, whatever the file stores of them. One that looks like the one before it is joined
with it when it is written: the times stay the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import SinkError, SourceError
from .frame import Frame, Pixels
from .part_file import PartFile
from .picture_data import PictureError, frames_of, inspect

FORMATS: Final = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
MAX_PIXELS: Final = 1 << 28
"""Of all frames together: they are held until the last, since a GIF's palettes are chosen for all of them."""
_TIME_BASE: Final = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class _Shown:
    """What of a frame is not its colours. alpha: (H, W)."""

    duration_ms: float
    alpha: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Description:
    """What is true of the whole animation. plays: 0 for ever, None once."""

    plays: int | None
    metadata: dict[str, Any]


class AnimationSource:
    """The frames of an animation, or of a picture as the one that it has; a `daemon.source.Source`.

    Raises SourceError when it is made. Where a later frame is damaged, it ends, and `damage` says so.
    """

    live: Final = False
    depth: Final = 8

    def __init__(self, path: Path, *, stream: str = "animation") -> None:
        self.path, self.name = path, stream
        self.damage: list[str] = []
        self.warnings: list[str] = []
        self._picture = picture = _opened(path)
        self.frames_expected = frames_of(picture)
        if (self.frames_expected or 1) * picture.width * picture.height > MAX_PIXELS:
            raise SourceError(
                f"{path}: an animation must have at most {MAX_PIXELS} pixels in all its frames,"
                f" got {self.frames_expected} of {picture.width}x{picture.height}"
            )
        plays = picture.info.get("loop")
        once = plays is None or (plays == 1 and picture.format != "GIF")  # GIF counts how often it is shown again
        kept = {key: picture.info[key] for key in ("icc_profile", "exif", "xmp", "comment") if picture.info.get(key)}
        self.description = Description(None if once else plays, kept)

    def __iter__(self) -> Iterator[Frame]:
        pts = 0
        for seq in range(self.frames_expected or MAX_PIXELS):
            began = time.monotonic_ns()
            try:
                self._picture.seek(seq)
                self._picture.load()
            except EOFError:
                return
            except Exception as error:  # noqa: BLE001 - damage raises anything, down to struct.error
                self.damage.append(f"frames from number {seq + 1} on cannot be read ({error})")
                return
            pixels = np.asarray(self._picture.convert("RGBA"))
            duration_ms = float(self._picture.info.get("duration") or 0)
            see_through = bool((pixels[..., 3] < 255).any())
            yield Frame(
                stream=self.name,
                seq=seq,
                pts=pts,
                time_base=_TIME_BASE,
                captured_ns=time.time_ns(),
                arrived_ns=time.monotonic_ns(),
                pixels=np.ascontiguousarray(pixels[..., :3]),
                spent_ns={"decode": time.monotonic_ns() - began},
                origin=_Shown(duration_ms, pixels[..., 3] if see_through else None),
            )
            pts += round(duration_ms * 1000)

    def close(self) -> None:
        """Nothing is open but memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class AnimationWriter:
    """Writes an animation; a `daemon.sink.Sink` with `commit` after `close`.

    quality: of WebP, 1 to 100.
    """

    def __init__(
        self, source: Path, target: Path, description: Description, *, quality: int = 95, overwrite: bool = False
    ) -> None:
        self.target = target
        self.notes: list[str] = []
        self.frames = 0
        self._description, self._quality = description, quality
        self._images: list[Image.Image] = []
        self._durations_ms: list[float] = []
        self._part = PartFile(target, source=source, overwrite=overwrite)

    def lend(self, frame: Frame) -> Pixels:
        return np.empty_like(frame.pixels)

    def send(self, frame: Frame) -> None:
        shown = frame.origin if isinstance(frame.origin, _Shown) else _Shown(0, None)
        pixels = frame.pixels if shown.alpha is None else np.dstack([frame.pixels, shown.alpha])
        self._images.append(Image.fromarray(pixels))
        self._durations_ms.append(shown.duration_ms)
        self.frames += 1

    def close(self) -> None:
        """Write what was sent. Raises SinkError."""
        if not self._images:
            return
        kind = FORMATS[self.target.suffix.lower()]
        see_through = any(image.mode == "RGBA" for image in self._images)
        images = [image.convert("RGBA") if see_through else image for image in self._images]
        self._images = []
        options: dict[str, Any] = {**self._description.metadata, "duration": self._durations_ms}
        if kind == "GIF":
            options["duration"] = [round(duration_ms) for duration_ms in self._durations_ms]
            options["disposal"] = 2 if see_through else 0  # what is no longer seen must go
            options |= {} if self._description.plays is None else {"loop": self._description.plays}
        else:
            options["loop"] = 1 if self._description.plays is None else self._description.plays
        if kind == "WEBP":
            options |= {"quality": self._quality, "duration": [round(each) for each in self._durations_ms]}
        if len(images) == 1:
            options.pop("duration")
        try:
            images[0].save(self._part.path, kind, save_all=len(images) > 1, append_images=images[1:], **options)
        except OSError as error:
            raise SinkError(f"{self.target}: cannot be written ({error.strerror or error})") from error
        except (ValueError, RuntimeError) as error:
            raise SinkError(f"{self.target}: cannot be encoded ({error})") from error

    def commit(self) -> None:
        """Give the animation its name. Raises SinkError if no frame was sent."""
        if not self.frames:
            raise SinkError(f"{self.target}: no picture was restored")
        self._part.commit()

    def abandon(self) -> None:
        """Write nothing at `close`."""
        self._images = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._part.discard()


def is_animation(source: Path, target: Path) -> bool:
    """Whether `source` moves, or is or becomes a GIF, and `target` can hold that."""
    if source.suffix.lower() not in FORMATS or target.suffix.lower() not in FORMATS:
        return False
    if target.suffix.lower() == ".gif":
        return True
    try:
        with Image.open(source) as picture:
            return picture.format == "GIF" or bool(getattr(picture, "is_animated", False))
    except Exception:  # noqa: BLE001 - whoever reads it says what is wrong
        return False


def _opened(path: Path) -> Image.Image:
    """With the first frame decoded."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        picture = inspect(data)
        if picture is not None:
            picture.load()
    except PictureError as error:
        raise SourceError(f"{path}: {error}") from error
    except Exception as error:
        raise SourceError(f"{path}: must be a picture, got one that is damaged ({error})") from error
    if picture is None:
        raise SourceError(f"{path}: must be a picture, got a file that is damaged or of another kind")
    return picture

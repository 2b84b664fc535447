"""Decoded pictures in one memory-mapped file, so that whoever draws crops never decodes.

Knows pictures and files of pixels; nothing of crops, blur or torch.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from .blur import Picture
from .errors import ExportError, InterruptedByUserError
from .pictures import is_grey, read_picture, with_name
from .videos import FRAMES_PER_VIDEO, count_frames, find_material, is_video, read_material, read_numbered


@dataclass(frozen=True)
class PictureStore:
    """Decoded pictures in one memory-mapped file: loaders that run beside the training step share it."""

    path: Path
    pixels: NDArray[np.uint8]
    sizes: tuple[tuple[int, int], ...]
    offsets: tuple[int, ...]

    @classmethod
    def build(
        cls,
        paths: Sequence[Path],
        target: Path,
        smallest_px: int,
        *,
        frames_per_video: int = FRAMES_PER_VIDEO,
        keep_grey: bool = True,
        stop: threading.Event | None = None,
    ) -> tuple[PictureStore, list[str]]:
        """Decode pictures, and frames of videos, into `target`.

        Without `keep_grey`, a video is passed over only if all of its frames are grey. Returns the store and one
        line for every file passed over. ExportError if none is left, InterruptedByUserError once `stop` is set.
        """
        skipped: list[str] = []
        with _writing(target) as writer:
            for path in paths:
                _go_on(stop)
                try:
                    frames = ((picture,) for picture in read_material(path, frames_per_video))
                    if fault := _add([writer], frames, smallest_px, keep_grey=keep_grey):
                        skipped.append(f"{path}: {fault}")
                except ExportError as error:
                    skipped.append(str(error))
            if not writer.sizes:
                first = f"; {skipped[0]}" if skipped else ""
                raise ExportError(f"no usable picture among {len(paths)} found{first}")
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

    def picture(self, index: int) -> Picture:
        """Picture `index`, RGB uint8 (H, W, 3): a read-only view of the file."""
        return self.pixels[self.offsets[index] : self.offsets[index + 1]].reshape(*self.sizes[index], 3)


def match(blurred: Path, sharp: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Pairs (blurred, sharp) of files with the same name, relative to their folder and without suffix.

    And one line for every file without a counterpart, or whose name another one has taken.
    """
    pairs, skipped = [], []
    files: list[dict[str, Path]] = []
    for root in (blurred, sharp):
        named: dict[str, Path] = {}
        for path in find_material([root]):
            name = path.relative_to(with_name(root)).with_suffix("").as_posix()
            if named.setdefault(name, path) != path:
                skipped.append(f"{path}: {named[name]} has the same name and is taken")
        files.append(named)
    for name in sorted(files[0].keys() | files[1].keys()):
        if name in files[0] and name in files[1]:
            pairs.append((files[0][name], files[1][name]))
        else:
            present, lacking = (files[0][name], sharp) if name in files[0] else (files[1][name], blurred)
            skipped.append(f"{present}: {lacking} has no counterpart named {name!r}")
    return pairs, skipped


def build_matched(
    pairs: Sequence[tuple[Path, Path]],
    targets: tuple[Path, Path],
    smallest_px: int,
    *,
    frames_per_video: int = FRAMES_PER_VIDEO,
    keep_grey: bool = True,
    stop: threading.Event | None = None,
) -> tuple[PictureStore, PictureStore, list[str]]:
    """Decode `pairs` of files, (blurred, sharp), into two `targets`, picture by picture of equal size.

    Returns both stores and one line for every pair passed over. ExportError if no pair is left.
    """
    skipped: list[str] = []
    with ExitStack() as stack:
        writers = [stack.enter_context(_writing(path)) for path in targets]
        for blurred, sharp in pairs:
            _go_on(stop)
            try:
                matched = _matched(blurred, sharp, frames_per_video)
                if fault := _add(writers, matched, smallest_px, keep_grey=keep_grey):
                    skipped.append(f"{sharp}: {fault}")
            except ExportError as error:
                skipped.append(str(error))
        if not writers[0].sizes:
            first = f"; {skipped[0]}" if skipped else ""
            raise ExportError(f"no usable pair among {len(pairs)} of the same name{first}")
    return PictureStore.open(targets[0]), PictureStore.open(targets[1]), skipped


def _go_on(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise InterruptedByUserError("interrupted before all pictures were decoded")


def _matched(blurred: Path, sharp: Path, frames: int) -> Iterator[tuple[Picture, Picture]]:
    if is_video(blurred) != is_video(sharp):
        raise ExportError(f"{blurred} and {sharp}: must be two pictures or two videos")
    if is_video(blurred):
        counts = count_frames(blurred), count_frames(sharp)
        if counts[0] != counts[1]:
            raise ExportError(f"{blurred}: must have {counts[1]} frames like {sharp}, got {counts[0]}")
        pairs = _in_step(read_numbered(blurred, frames), read_numbered(sharp, frames))
    else:
        pairs = iter([(read_picture(blurred), read_picture(sharp))])
    pair = None
    for pair in pairs:
        if pair[0].shape != pair[1].shape:
            raise ExportError(f"{blurred}: must be {_size(pair[1])} like {sharp}, got {_size(pair[0])}")
        yield pair
    if pair is None:
        raise ExportError(f"{blurred} and {sharp}: no frame of the same number is undamaged in both")


def _in_step(
    blurred: Iterator[tuple[int, Picture]], sharp: Iterator[tuple[int, Picture]]
) -> Iterator[tuple[Picture, Picture]]:
    """Pictures of the same number; numbers rise, and either side may lack some."""
    other = next(sharp, None)
    for number, picture in blurred:
        while other is not None and other[0] < number:
            other = next(sharp, None)
        if other is not None and other[0] == number:
            yield picture, other[1]


def _size(picture: Picture) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


@dataclass
class _Writer:
    file: IO[bytes]
    sizes: list[tuple[int, int]] = field(default_factory=list)

    def add(self, picture: Picture) -> None:
        self.sizes.append((picture.shape[0], picture.shape[1]))
        self.file.write(np.ascontiguousarray(picture).data)


def _add(
    writers: Sequence[_Writer], frames: Iterable[tuple[Picture, ...]], smallest_px: int, *, keep_grey: bool
) -> str:
    """Write the frames of one file, one picture to each writer; returns the rule that kept the file out, or nothing.

    The last picture of each frame is the one that is judged.
    """
    grey = kept = 0
    for frame in frames:
        if min(frame[-1].shape[:2]) < smallest_px:
            return f"pictures must be at least {smallest_px} px on each side, got {_size(frame[-1])}"
        if not keep_grey and is_grey(frame[-1]):
            grey += 1  # a video may fade in from black
            continue
        for writer, picture in zip(writers, frame, strict=True):
            writer.add(picture)
        kept += 1
    return "pictures must be in colour, got a grey one" if grey and not kept else ""


@contextmanager
def _writing(target: Path) -> Iterator[_Writer]:
    """A store that gets its name only when the block ends well."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as file:
            writer = _Writer(file)
            yield writer
        # Renamed, not written over: another run in this folder may have the old one mapped.
        partial.replace(target)
        target.with_suffix(".json").write_text(json.dumps(writer.sizes), encoding="utf-8")
    except OSError as error:
        raise ExportError(f"{target}: not writable ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)

"""Pictures in folders: which there are, what they hold, and which are kept for measuring.

Knows files and arrays; nothing of torch or training.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from .blur import Picture
from .errors import ExportError

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
DEVELOPMENT_SPLIT = Path(__file__).with_name("development.txt")

GREY_LEVELS = 4.0
"""Seen among photographs: pure grey ones lie below 1.5, toned and scanned ones below 4, faces in colour above 6."""


def read_picture(path: Path) -> Picture:
    """Decode a picture to RGB uint8 (H, W, 3); ExportError names a file that does not decode."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ExportError(f"{path}: not readable ({error.strerror})") from error
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if bgr is None:
        raise ExportError(f"{path}: not a picture that decodes")
    return np.ascontiguousarray(bgr[..., ::-1])


def find_pictures(roots: Iterable[Path]) -> list[Path]:
    """Every picture below `roots`, sorted."""
    return find_files(roots, PICTURE_SUFFIXES, "pictures")


def find_files(roots: Iterable[Path], suffixes: set[str], what: str) -> list[Path]:
    """Every file below `roots` with one of `suffixes`, sorted, each once; `what` they are is for the error.

    Each is below its root as `with_name` gives it; where two roots hold it, below the first.
    """
    found: dict[Path, Path] = {}
    for root in roots:
        if not root.is_dir():
            raise ExportError(f"{root}: data must be a folder of {what}")
        base, place = with_name(root), root.resolve()
        for path in base.rglob("*"):
            if path.suffix.lower() in suffixes and path.is_file():
                found.setdefault(place / path.relative_to(base), path)
    return sorted(found.values())


def with_name(folder: Path) -> Path:
    """`folder` as it was given, but absolute where that ends in no name, as `.` and `..` do: origins are names."""
    return folder.resolve() if folder.name in ("", "..") else folder


def read_split(path: Path = DEVELOPMENT_SPLIT) -> list[str]:
    """The `folder/name` lines of a split file."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def split_by_origin(pictures: Sequence[Path], split: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """(pictures of other origins, pictures that the split lists); an origin is the folder a picture lies in."""
    listed = set(split)
    origins = {line.split("/")[0] for line in split}
    rest = [path for path in pictures if path.parent.name not in origins]
    held = [path for path in pictures if f"{path.parent.name}/{path.name}" in listed]
    return rest, held


def halves(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Two parts of about equal size, by a hash of `folder/name`: a file stays in its part when others are added."""
    parts: tuple[list[Path], list[Path]] = ([], [])
    for path in paths:
        parts[zlib.crc32(os.fsencode(f"{path.parent.name}/{path.name}")) >> 31].append(path)
    return parts


def is_grey(picture: Picture) -> bool:
    """Whether the colour of a picture is a function of its brightness alone: grey, or toned such as sepia.

    The picture is reduced to 64 px, which averages the noise of sensors and of JPEG away. Then 99% of its pixels
    must have a chroma (Cr, Cb) within `GREY_LEVELS` of the mean chroma of all pixels that are as bright. What is
    coloured on less than 1% of a grey picture is not seen.
    """
    height, width = picture.shape[:2]
    scale = max(height, width) / 64
    small = picture
    if scale > 1:
        size = max(1, round(width / scale)), max(1, round(height / scale))
        small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    luma, *chroma = cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb).reshape(-1, 3).astype(np.float64).T
    bright = (luma / 16).astype(int)
    pixels = np.maximum(np.bincount(bright, minlength=16), 1)
    off = np.hypot(*(c - (np.bincount(bright, c, 16) / pixels)[bright] for c in chroma))
    return bool(np.percentile(off, 99) < GREY_LEVELS)

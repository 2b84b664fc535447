"""Sharp pictures in folders: which there are, what they hold, and which are kept for measuring.

Knows files and arrays; nothing of torch or training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from .blur import Picture
from .errors import ExportError

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
DEVELOPMENT_SPLIT = Path(__file__).with_name("development.txt")


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
    found: list[Path] = []
    for root in roots:
        if not root.is_dir():
            raise ExportError(f"{root}: data must be a folder of pictures")
        found += [path for path in root.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES]
    return sorted(found)


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

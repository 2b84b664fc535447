"""How many bytes a media file says that it has, by its outermost boxes, chunks or elements.

Knows how MP4, AVI, ASF and Matroska begin theirs; nothing of what is in them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from . import matroska

# Of MP4, all that are found outermost; anything else is no box but something that was added to the file.
_BOXES: Final = b"ftyp styp moov moof mdat mfra sidx ssix free skip wide uuid meta pdin prft emsg udta pnot".split()
# Header, data and index of ASF.
_OBJECTS: Final = tuple(
    bytes.fromhex(name)
    for name in (
        "3026b2758e66cf11a6d900aa0062ce6c",
        "3626b2758e66cf11a6d900aa0062ce6c",
        "90080033b1e5cf1189f400a0c90349cb",
    )
)
_UNKNOWN_RIFF: Final = 0xFFFFFF00  # and above, or 0: of a recording that was never ended


def declared_size(path: Path, container: str) -> int | None:
    """Where the last box of the file ends, which may be beyond the file; None where nothing tells.

    container: by FFmpeg's name. Raises OSError.
    """
    read = next((read for name, read in _READERS.items() if name in container), None)
    if read is None:
        return None
    with path.open("rb") as file:
        actual, position, known = os.fstat(file.fileno()).st_size, 0, False
        while position < actual:
            file.seek(position)
            size = read(file)
            if size is None:
                break
            position, known = position + size, True
    return position if known else None


def _mp4(file: BinaryIO) -> int | None:
    """The size of the box that begins here; None where it lasts to the end of the file, or is none."""
    header = file.read(8)
    size, kind = int.from_bytes(header[:4]), header[4:]
    least = 8
    if size == 1:
        size, least = int.from_bytes(file.read(8)), 16
    return size if size >= least and kind in _BOXES else None


def _avi(file: BinaryIO) -> int | None:
    header = file.read(8)
    size = int.from_bytes(header[4:], "little")
    if header[:4] != b"RIFF" or not 0 < size < _UNKNOWN_RIFF:
        return None
    return size + size % 2 + 8


def _asf(file: BinaryIO) -> int | None:
    header = file.read(24)
    size = int.from_bytes(header[16:], "little")
    return size if size >= 24 and header[:16] in _OBJECTS else None


def _matroska(file: BinaryIO) -> int | None:
    """The header, or the segment, which goes to the end of the file where its size is unknown."""
    begin = file.tell()
    found = matroska.element(file, begin)
    if found is None or found[2] is None or found[0] != (matroska.SEGMENT if begin else matroska.EBML):
        return None
    return found[2] - begin


_READERS: Final[dict[str, Callable[[BinaryIO], int | None]]] = {
    "mp4": _mp4,
    "avi": _avi,
    "asf": _asf,
    "matroska": _matroska,
}

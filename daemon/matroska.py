"""Where the elements of a Matroska file cease to follow one another: there something was lost, maybe in silence.

Knows EBML's numbers and Matroska's clusters; nothing of what the elements mean.

Readers pass over what is no element until they find the next cluster, and say nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Final

EBML: Final = 0x1A45DFA3
SEGMENT: Final = 0x18538067  # all that comes after the header
_CLUSTER: Final = 0x1F43B675
_LONGEST: Final = 8  # bytes of a number
_LONGEST_ID: Final = 4


def broken_at(path: Path) -> int | None:
    """The first byte where an element should begin, and none does; None if there is no such, or sizes are unknown.

    A file that is cut is not broken by that alone. Raises OSError.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = element(file, 0)
        segment = element(file, header[2]) if header and header[0] == EBML and header[2] is not None else None
        if segment is None or segment[0] != SEGMENT or segment[2] is None:
            return None
        return _broken_in(file, segment[1], segment[2], size)


def _broken_in(file: BinaryIO, begin: int, end: int, size: int) -> int | None:
    while begin < min(end, size):
        found = element(file, begin)
        if found is None:
            return begin if begin + _LONGEST + _LONGEST_ID <= size else None
        kind, content, behind = found
        if behind is None:
            return None
        if behind > end:
            return begin
        if kind == _CLUSTER and (place := _broken_in(file, content, behind, size)) is not None:
            return place
        begin = behind
    return None


def element(file: BinaryIO, position: int) -> tuple[int, int, int | None] | None:
    """Its id, where its content begins, and where that ends, if it says so; None where no element begins."""
    file.seek(position)
    head = file.read(_LONGEST + _LONGEST_ID)
    kind_length = _length(head, 0)
    size_length = _length(head, kind_length)
    content = kind_length + size_length
    if not kind_length or kind_length > _LONGEST_ID or not size_length or content > len(head):
        return None
    mask = (1 << 7 * size_length) - 1
    size = int.from_bytes(head[kind_length:content]) & mask
    begin = position + content
    return int.from_bytes(head[:kind_length]), begin, None if size == mask else begin + size


def _length(data: bytes, place: int) -> int:
    """Of the number that begins at `place`, in bytes; 0 where none does."""
    first = data[place] if place < len(data) else 0
    return _LONGEST + 1 - first.bit_length() if first else 0

"""Files that were cut, or whose bits were changed, and files without a frame, made on the spot.

`BROKEN_FILES` has all of them. Knows how to break files; nothing of what reads them.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import clips
from odd_files import Ends, OddFile

BROKEN_FILES: list[OddFile] = []
FAST_START = {"movflags": "+faststart"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
SHORT_GROUPS = {"g": "5", "qp": "20"}


def broken(name: str, ends: Ends, breaks: Callable[[bytes], bytes], *, says: str, result: str = "", **how: Any) -> None:
    """A video of thirty frames, whose bytes `breaks` changes."""

    def make(path: Path) -> None:
        made = {"count": 30, "options": SHORT_GROUPS if "codec" not in how else {}} | how
        path.write_bytes(breaks(clips.write_video(path, **made).read_bytes()))

    BROKEN_FILES.append(OddFile(name, make, ends, says, result))


def cut(share: float) -> Callable[[bytes], bytes]:
    """The end is missing."""
    return lambda data: data[: int(len(data) * share)]


def hole(begin: float, end: float) -> Callable[[bytes], bytes]:
    """Zeros, as where a disk has lost blocks."""

    def breaks(data: bytes) -> bytes:
        first, last = int(len(data) * begin), int(len(data) * end)
        return data[:first] + bytes(last - first) + data[last:]

    return breaks


def flipped(begin: float, count: int = 20) -> Callable[[bytes], bytes]:
    """Single bits, from a share of the file on."""

    def breaks(data: bytes) -> bytes:
        chance, changed = random.Random(5), bytearray(data)
        for _ in range(count):
            changed[chance.randrange(int(len(data) * begin), len(data))] ^= 1 << chance.randrange(8)
        return bytes(changed)

    return breaks


def lost(begin: float, end: float) -> Callable[[bytes], bytes]:
    """Bytes in the middle are missing."""
    return lambda data: data[: int(len(data) * begin)] + data[int(len(data) * end) :]


def put(mark: bytes, offset: int, new: bytes) -> Callable[[bytes], bytes]:
    """Other bytes, `offset` behind the end of the first `mark`."""

    def breaks(data: bytes) -> bytes:
        place = data.index(mark) + len(mark) + offset
        return data[:place] + new + data[place + len(new) :]

    return breaks


def renamed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new)


def before(mark: bytes) -> Callable[[bytes], bytes]:
    """Nothing is there from behind `mark` on."""
    return lambda data: data[: data.index(mark) + len(mark)]


broken("no_index.mp4", "refused", cut(0.6), says="without its index")
broken("no_index.mov", "refused", cut(0.6), says="without its index")
broken("cut.mp4", "partial", cut(0.6), says="the file is cut off", container_options=FAST_START, audio="aac")
broken("cut_before_the_first_frame.mp4", "refused", before(b"mdat"), says="cut off", container_options=FAST_START)
broken("cut_fragments.mp4", "partial", cut(0.6), says="the file is cut off", container_options=FRAGMENTS)
broken("cut.mkv", "partial", cut(0.6), says="the file is cut off", audio="aac")
broken("cut.webm", "partial", cut(0.6), says="the file is cut off", codec="libvpx-vp9")
broken("cut.avi", "partial", cut(0.6), says="the file is cut off", audio="mp3")
broken("cut.flv", "partial", cut(0.6), says="the file is cut off")
broken("cut.wmv", "partial", cut(0.3), says="the file is cut off", result="cut.mkv", codec="wmv2")
broken("cut.ts", "partial", cut(0.6), says="damaged", options=clips.LOSSLESS)
broken("cut_in_the_header.mkv", "refused", cut(0.02), says="mkv")
broken("cut_in_the_header.avi", "refused", lambda data: data[:100], says="avi")
broken("cut_in_the_header.mp4", "refused", lambda data: data[:20], says="mp4")
broken("one_byte.mkv", "refused", lambda data: data[:1], says="mkv")
broken("bits.mp4", "partial", flipped(0.3), says="damaged", container_options=FAST_START)
broken("bits.mkv", "partial", flipped(0.3), says="damaged", audio="aac")
broken("bits.ts", "partial", flipped(0.1), says="damaged", audio="aac")
broken("bits.avi", "partial", flipped(0.3), says="lost", codec="mpeg4")
broken("bits.webm", "partial", flipped(0.3), says="lost", codec="libvpx-vp9")
broken("bits_in_the_index.mp4", "refused", hole(0.8, 0.95), says="mp4")
broken("hole.mp4", "partial", hole(0.4, 0.6), says="did not decode", container_options=FAST_START)
broken("hole.mkv", "partial", hole(0.4, 0.6), says="lost")
broken("hole.ts", "partial", hole(0.4, 0.6), says="lost")
broken("hole.avi", "partial", hole(0.75, 0.85), says="lost", codec="mpeg4")
broken("bytes_lost.mkv", "partial", lost(0.4, 0.5), says="lost")
broken("bytes_lost.ts", "partial", lost(0.4, 0.5), says="lost")
broken("bytes_lost.mp4", "partial", lost(0.4, 0.5), says="lost", container_options=FAST_START)
broken("two_billion_sizes.mp4", "refused", put(b"stsz", 8, b"\x7f\xff\xff\xff"), says="mp4")
broken("two_billion_durations.mp4", "whole", put(b"stts", 8, b"\x7f\xff\xff\xff"), says="done")
broken("duration_is_no_number.mkv", "whole", put(b"\x44\x89\x88", 0, struct.pack(">d", float("nan"))), says="done")
broken("header_lies_about_the_size.mkv", "whole", put(b"\xb0\x81", 0, b"\x30"), says="done")
broken("text_behind_the_end.mp4", "whole", lambda data: data + b"trailing text " * 100, says="done")
broken("text_behind_the_end.mkv", "whole", lambda data: data + b"trailing text " * 100, says="done")
broken("text_before_the_beginning.mp4", "refused", lambda data: b"leading text " * 100 + data, says="mp4")
broken(
    "title_in_no_encoding.mkv",
    "whole",
    renamed(b"a title", b"a \xff\xfe\xf0le"),
    says="done",
    metadata={"title": "a title"},
)


def header_only(path: Path) -> None:
    """Of a recording that never began."""
    with av.open(str(path), "w", container_options=FRAGMENTS if path.suffix == ".mp4" else {}) as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()


BROKEN_FILES += [
    OddFile(f"no_frame.{suffix}", header_only, "refused", f"no_frame.{suffix}")
    for suffix in ("mp4", "mkv", "avi", "ts", "flv")
]

"""Where restored video goes: an RTSP server, or files whose names are made from the stream and the time.

Knows addresses, names and folders; nothing of what is sent or written.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .address import Address
from .errors import SinkError, SourceError

FORMATS: Final = {".mkv": "matroska", ".mp4": "mp4"}
"""FFmpeg's names of the containers that can be read after a crash, by the suffix of the file."""

_STREAM: Final = "{stream}"
_VARIES: Final = ("%", _STREAM)


@dataclass(frozen=True)
class Target:
    """An RTSP server or a pattern of file names. `str()` and `repr()` of it hold no password.

    text: how it is written down.
    address: of the server; None for files.
    pattern: with `{stream}` for the name of the stream, and %Y, %m, %d, %H, %M, %S as in `strftime`.
    """

    text: str
    address: Address | None = None
    pattern: str = field(default="", repr=False)

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target; SinkError, in one line and without secrets, if it is none."""
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
        if scheme and scheme[1].lower() == "rtsp":
            try:
                address = Address.parse(text)
            except SourceError as error:
                raise SinkError(str(error)) from None
            return cls(address.text, address)
        if scheme:
            raise SinkError(f"{scheme[1]}://…: video goes to rtsp:// or to files of the name *.mkv or *.mp4")
        if not text or not text.isprintable():
            raise SinkError(f"{text!r}: must be rtsp://… or a name of files")
        if Path(text).suffix.lower() not in FORMATS:
            raise SinkError(f"{text}: the name must end in .mkv or .mp4, got {Path(text).suffix!r}")
        unknown = next((name for name in re.findall(r"\{[^}]*\}", text) if name != _STREAM), None)
        if unknown:
            raise SinkError(f"{text}: {_STREAM} is the only name in braces, got {unknown}; times are %Y, %m, %d, %H …")
        return cls(text, pattern=text)

    def create(self, stream: str, when: time.struct_time) -> Path:
        """A new empty file for `stream`, named after `when`; one that was there before is never touched.

        Where the name is taken, -2, -3 … is added to it. Folders whose names vary are made, others must exist: what
        is not mounted is not replaced by a folder. SinkError if there can be no file.
        """
        parts = Path(self.pattern).expanduser().parts
        fixed = list(itertools.takewhile(lambda part: not any(sign in part for sign in _VARIES), parts[:-1]))
        folder = Path(*fixed)
        if not folder.is_dir():
            raise SinkError(f"there is no folder {folder}")
        *folders, name = (_named(part, stream, when) for part in parts[len(fixed) :])
        path = folder.joinpath(*folders, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for number in itertools.count(1):
                free = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
                try:
                    os.close(os.open(free, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                    return free
                except FileExistsError:
                    continue
        except OSError as error:
            raise SinkError(f"{path} cannot be written ({(error.strerror or str(error)).lower()})") from error
        raise AssertionError("unreachable")

    def __str__(self) -> str:
        return self.text


def _named(part: str, stream: str, when: time.struct_time) -> str:
    """One part of a path. The name of a stream may hold what a file name may not."""
    name = re.sub(r"[/\\:\0]", "-", stream)
    return time.strftime(part, when).replace(_STREAM, f"_{name[1:]}" if name.startswith(".") else name)

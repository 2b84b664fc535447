"""`-` for a file: standard input is put into a file first, and what is for standard output comes when it is complete.

Knows streams of bytes and temporary files; nothing of videos.

A video is read more than once, its end is looked at before its beginning is restored, and most containers are written
with a look back: none of that can be done in a pipe.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .errors import SinkError, SourceError

PIPE: Final = Path("-")
_POLL_S: Final = 0.1
_CHUNK: Final = 1 << 20


@contextmanager
def piped(inputs: list[Path], output: Path, asked_to_stop: Callable[[], bool]) -> Iterator[tuple[list[Path], Path]]:
    """`inputs` and `output` with files in the place of `-`, which are gone after the block.

    The output is Matroska, and goes to standard output at the end of the block, if it was made. Raises SourceError,
    SinkError, or SystemExit with 130 when `asked_to_stop`.
    """
    if PIPE not in inputs and output != PIPE:
        yield inputs, output
        return
    if PIPE in inputs and (len(inputs) > 1 or sys.stdin.isatty()):
        raise SourceError(f"-: must be the only input and come from a pipe or a file, got {_got(inputs)}")
    if output == PIPE and sys.stdout.isatty():
        raise SinkError("-: standard output must be a pipe or a file, got a terminal")
    with tempfile.TemporaryDirectory(prefix="deblurd-") as folder:
        if PIPE in inputs:
            inputs = [Path(folder) / "standard input"]
            _receive(inputs[0], asked_to_stop)
        target = Path(folder) / "standard output.mkv" if output == PIPE else output
        yield inputs, target
        if output == PIPE and target.exists():
            with target.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer, _CHUNK)
            sys.stdout.buffer.flush()


def _got(inputs: list[Path]) -> str:
    return f"{len(inputs)} inputs" if len(inputs) > 1 else "a terminal"


def _receive(path: Path, asked_to_stop: Callable[[], bool]) -> None:
    """All of standard input, into a new file."""
    source = sys.stdin.fileno()
    with path.open("wb") as file:
        while not asked_to_stop():
            if not select.select([source], [], [], _POLL_S)[0]:
                continue
            data = os.read(source, _CHUNK)
            if not data:
                return
            file.write(data)
    raise SystemExit(130)

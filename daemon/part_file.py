"""A file that appears whole or not at all: written beside its place under another name, then renamed.

Knows names and folders; nothing of what is written.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .errors import SinkError, StorageError

_PASSING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


class PartFile:
    """An empty file in `target`'s folder, or in `folder` on the same file system, to be written and then committed or
    discarded.

    Raises SinkError if the folder cannot be written, if `target` is `source`, or if it exists and must not be
    replaced.
    """

    def __init__(self, target: Path, *, source: Path, overwrite: bool = False, folder: Path | None = None) -> None:
        self.target, self._overwrite = target, overwrite
        check_target(target, source=source, overwrite=overwrite)
        # Short, because the whole name must stay below the file system's limit; the suffix tells FFmpeg the format.
        name = f".{target.stem[:40]}.{secrets.token_hex(4)}.part{target.suffix}"
        self.path = (folder or target.parent) / name
        try:
            # Not by tempfile, whose files are nobody else's to read.
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except OSError as error:
            raise SinkError(f"{target}: the folder must be writable ({error.strerror})") from error

    def commit(self) -> None:
        """Make the file durable and give it its name."""
        _check_free(self.target, self._overwrite)
        try:
            sync(self.path)
            self.path.replace(self.target)
            sync(self.target.parent)
        except OSError as error:
            raise unwritable(self.target, error) from error

    def discard(self) -> None:
        """Leave nothing behind; after `commit`, and again, this does nothing."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.discard()


def check_target(target: Path, *, source: Path, overwrite: bool) -> None:
    """Raises SinkError if `target` is no name for a file, if it is `source`, or exists and must not be replaced."""
    if not target.name or target.is_dir():
        raise SinkError(f"{target}: the output must be a file, got a folder")
    if target.exists() and source.exists() and target.samefile(source):
        raise SinkError(f"{target}: the output must be another file than the input")
    _check_free(target, overwrite)


def unwritable(target: Path, error: Exception) -> SinkError:
    """StorageError, or another SinkError, in one line without error numbers."""
    kind = StorageError if getattr(error, "errno", None) in _PASSING else SinkError
    return kind(f"{target}: cannot be written ({(getattr(error, 'strerror', None) or str(error)).lower()})")


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_free(target: Path, overwrite: bool) -> None:
    if not overwrite and target.exists():
        raise SinkError(f"{target}: the output must not exist yet, unless it may be overwritten")

"""The folder of a job: what of it is done, from which inputs and settings, and whose process works on it.

Knows files, hashes and a lock; nothing of videos.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from filelock import FileLock, Timeout

from .errors import SinkError
from .part_file import sync, unwritable

_STATE, _LOCK, _RESULT, _SEGMENT = "job.json", "lock", "result.json", ".packets"
_LONGEST_NAME: Final = 255  # bytes, of most file systems


class Job:
    """The folder `TARGET.job`, made if need be, and locked as long as the `with` block lasts.

    Raises SinkError where the folder cannot be made, or another process holds it. A folder in which no segment was
    finished goes away in the end; any other stays, so that the same command goes on, until `remove`.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = job_folder(target)

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(exist_ok=True)
            # Shared by the threads of this process, none of which waits.
            self._lock = FileLock(self.folder / _LOCK, timeout=0, thread_local=False)
            self._lock.acquire()
        except Timeout:
            raise SinkError(f"{self.target}: another process works on it (in {self.folder})") from None
        except OSError as error:
            raise SinkError(f"{self.target}: the folder must be writable ({error.strerror})") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if self.folder.exists() and not self._anything_done():
                self.remove()
        finally:
            self._lock.release()

    def begin(self, fingerprint: Mapping[str, str]) -> list[str]:
        """Go on with the job of this fingerprint. Where the folder's is another one, the job begins anew.

        fingerprint: what the result depends on, by its name.

        The names of the parts that differ; none for a new job, or one that goes on.
        """
        before = self._read(_STATE)
        differing = [name for name in fingerprint if before.get(name) != fingerprint[name]] if before else []
        if differing or not before:
            self._empty()
            self._write(_STATE, dict(fingerprint))
        for path in self.folder.glob("*.part*"):  # of a process that was killed
            path.unlink(missing_ok=True)
        for path in self.folder.glob(".*.part*"):
            path.unlink(missing_ok=True)
        return differing

    def segment(self, index: int) -> Path:
        """Where a segment is when it is finished."""
        return self.folder / f"{index:05}{_SEGMENT}"

    def note_result(self, part: Path, outcome: dict[str, Any]) -> None:
        """Note what `part` will be the result of, before it gets the target's name."""
        self._write(_RESULT, {"file": _identity(part), "outcome": outcome})

    def result(self) -> dict[str, Any] | None:
        """What was noted, if the target is that very file: then only the folder's removal is left to do."""
        noted = self._read(_RESULT)
        try:
            return noted["outcome"] if noted and noted["file"] == _identity(self.target) else None
        except OSError:
            return None

    def remove(self) -> None:
        """Remove the folder, the note of the result last, so that whatever interrupts this can be told from a job."""
        self._empty(keep=(_RESULT,))
        for name in (_RESULT, _LOCK):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # another process has begun anew in it
            self.folder.rmdir()

    def _anything_done(self) -> bool:
        return any(self.folder.glob(f"*{_SEGMENT}"))

    def _empty(self, keep: tuple[str, ...] = ()) -> None:
        for path in self.folder.iterdir():
            if path.name not in (_LOCK, *keep):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.folder / name).read_bytes())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _write(self, name: str, value: dict[str, Any]) -> None:
        part = self.folder / f"{name}.part"
        try:
            part.write_text(json.dumps(value, indent=2), encoding="utf-8")
            sync(part)
            part.replace(self.folder / name)
            sync(self.folder)
        except OSError as error:
            raise unwritable(self.target, error) from error


def job_folder(target: Path) -> Path:
    """Where the job of `target` is kept: its name and `.job`, cut where that would be too long for a name."""
    name = f"{target.name}.job"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f"{target.stem[:40]}.{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}.job"
    return target.with_name(name)


def is_begun(target: Path) -> bool:
    """Whether a job of `target` is kept, with something done."""
    return any(job_folder(target).glob(f"*{_SEGMENT}"))


def _identity(path: Path) -> list[int]:
    """A file's own, whatever its name."""
    state = path.stat()
    return [state.st_ino, state.st_size, state.st_mtime_ns]

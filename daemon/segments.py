"""Files in shared memory for the frames of one daemon: private, named after its run, swept when it was killed.

Knows files and locks; nothing of what is written into them.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import re
import secrets
import threading
import time
from itertools import count
from pathlib import Path

from .control import Probe

log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")  # noqa: S108 - no temporary folder: nothing else is shared memory
RETRY_S = 5.0
"""How long after a file did not fit the next one is tried: the kernel takes its time to find out."""

_NAME = re.compile(r"deblurd-([0-9a-f]+)[-.]")


class Segments:
    """The files of the daemon of `run_id` in `folder`, 0600. OSError where it cannot have any.

    A lock on `deblurd-RUN.lock` is held for as long as the process lives: others can tell that its files are in use.
    `close` removes all of them; who has mapped one keeps what is in it. Threads may share a `Segments`.
    """

    def __init__(self, run_id: str, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._prefix, self._numbers = f"deblurd-{run_id}", count()
        self._names: set[str] = set()
        self._mutex = threading.Lock()
        self._full_s: float | None = None
        self._lock_path = folder / f"{self._prefix}.lock"
        self._lock = _locked(self._lock_path)
        value = secrets.token_hex(16)
        try:
            self.probe = Probe(str(folder), f"{self._prefix}-probe", value)
            with open(_new_file(folder / self.probe.file), "w", encoding="ascii") as file:
                file.write(value)
        except OSError:
            self.close()
            raise

    def create(self, size: int) -> tuple[str, mmap.mmap] | None:
        """A new file of `size` bytes, mapped; None where there is no room, which is logged once."""
        with self._mutex:
            if self._full_s is not None and time.monotonic() - self._full_s < RETRY_S:
                return None
            name = f"{self._prefix}-{next(self._numbers)}"
            try:
                memory = _map_new(self.folder / name, size)
            except OSError as error:
                if self._full_s is None:
                    reason = f"{size} bytes in {self.folder}: {error.strerror}"
                    log.warning("no shared memory for a frame (%s); frames without room go by the socket", reason)
                self._full_s = time.monotonic()
                return None
            self._names.add(name)
            return name, memory

    def remove(self, name: str) -> None:
        """Take `name` out of the folder; its memory is free when the last who mapped it lets go."""
        with self._mutex:
            self._names.discard(name)
        (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all files; may be called again."""
        for name in [*self._names, f"{self._prefix}-probe"]:
            self.remove(name)
        if self._lock >= 0:
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1


def open_segments(run_id: str, folder: Path = FOLDER) -> Segments | None:
    """Segments, after those of dead daemons were swept; None where there is no shared memory."""
    try:
        sweep(folder)
        return Segments(run_id, folder)
    except OSError as error:
        log.info("no shared memory in %s: %s", folder, error.strerror)
        return None


def sweep(folder: Path = FOLDER) -> None:
    """Remove this user's files of daemons that are no more."""
    names = [entry.name for entry in os.scandir(folder) if entry.name.startswith("deblurd-")]
    for run_id in {match[1] for name in names if (match := _NAME.match(name))}:
        lock_path = folder / f"deblurd-{run_id}.lock"
        lock = _lock_of_the_dead(lock_path)
        if lock is None:
            continue
        files = [name for name in names if name.startswith(f"deblurd-{run_id}-")]
        for path in [*(folder / name for name in files), lock_path]:
            if _is_ours(path):
                path.unlink(missing_ok=True)
        os.close(lock)


def _new_file(path: Path) -> int:
    """A file that was not there before, whoever may write into the folder, with no rights for others."""
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600)


def _map_new(path: Path, size: int) -> mmap.mmap:
    file = _new_file(path)
    try:
        os.posix_fallocate(file, 0, size)  # a full folder is an error here, and no SIGBUS at the first write
        return mmap.mmap(file, size, mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)


def _locked(path: Path) -> int:
    """Create `path` and lock it. Who sweeps between the two takes it for a dead daemon's and removes it: try again."""
    while True:
        file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:
                return file
        except OSError:
            os.close(file)
            raise
        os.close(file)


def _lock_of_the_dead(path: Path) -> int | None:
    """The lock of a daemon's files, taken; None while it lives, or where it belongs to another user.

    Where a lock file is missing, one is made: the files lie there without an owner.
    """
    try:
        file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        if os.fstat(file).st_uid == os.geteuid():
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
    except OSError:
        pass
    os.close(file)
    return None


def _is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.geteuid()
    except OSError:
        return False

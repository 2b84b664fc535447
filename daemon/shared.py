"""Frames of a daemon on this host where they lie: in files in shared memory, mapped and read without a copy.

Knows files and who still holds a frame; nothing of sockets.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import weakref
from collections import deque
from pathlib import Path

import numpy as np

from .control import Probe
from .wire import Segment


class SharedMemory:
    """The files of one run of a daemon, in the folder that `probe` names. OSError where they cannot be read.

    That is so on another host, for another user, and on systems that have no such files.
    """

    def __init__(self, probe: Probe) -> None:
        self._folder = Path(probe.folder)
        self._maps: dict[str, mmap.mmap] = {}
        # Filled by the garbage collector, which may come at any time and in any thread: a lock could not be taken.
        self._done: deque[int] = deque()
        file = _open(self._folder / probe.file)
        try:
            value = os.read(file, 256)
        finally:
            os.close(file)
        if value.decode("ascii", "replace").strip() != probe.value:
            raise OSError(errno.ESTALE, "another daemon's file", probe.file)

    def view(self, segment: Segment) -> memoryview:
        """The bytes of a frame, read-only. When nothing refers to them any more, their token is in `released`.

        OSError if the file cannot be mapped, or is shorter than the daemon said.
        """
        try:
            memory = self._map(segment.file)
            if segment.offset + segment.size > len(memory):
                raise OSError(errno.EINVAL, "shorter than the daemon says", segment.file)
        except OSError:
            self._done.append(segment.token)
            raise
        array = np.frombuffer(memory, np.uint8, segment.size, segment.offset)
        weakref.finalize(array, self._done.append, segment.token).atexit = False
        return array.data

    def released(self) -> tuple[int, ...]:
        """The tokens of frames that nobody holds any more; each is given once."""
        tokens = []
        while self._done:
            tokens.append(self._done.popleft())
        return tuple(tokens)

    def _map(self, name: str) -> mmap.mmap:
        memory = self._maps.get(name)
        if memory is None:
            # The daemon has a new file: the time to let go of those that it has removed.
            self._maps = {name: kept for name, kept in self._maps.items() if (self._folder / name).exists()}
            file = _open(self._folder / name)
            try:
                # All pages at once: each would cost a fault when it is first read.
                flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
                memory = self._maps[name] = mmap.mmap(file, 0, flags, mmap.PROT_READ)
            except ValueError as error:  # an empty file
                raise OSError(errno.EINVAL, "shorter than the daemon says", name) from error
            finally:
                os.close(file)
        return memory


def open_shared(probe: Probe | None) -> SharedMemory | None:
    """The shared memory that a daemon offers; None where it offers none, or where this process cannot read it."""
    if probe is None or os.name != "posix":
        return None
    try:
        return SharedMemory(probe)
    except OSError:
        return None


def _open(path: Path) -> int:
    """A file of this user, and nothing that only looks like one: the name came over a socket."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        os.close(file)
        raise OSError(errno.EACCES, "not a file of this user", str(path))
    return file

"""Compiled engines kept on disk for the next start.

Knows files, keys and checksums; nothing of what an entry holds. What a library reads back from here can run as code,
so the folder is private, and every byte is checked before anybody sees it.

An entry is one file: the line `deblurd-cache 1`, its key as one line of JSON, the sha256 of the rest, the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import EngineError

log = logging.getLogger(__name__)

MAGIC = b"deblurd-cache 1\n"

ENTRIES_KEPT = 64
"""Entries beyond this are removed, those first that were not used for the longest time."""

Key = Mapping[str, object]
"""Everything that an entry depends on, by name; JSON values."""


def private_folder(path: Path) -> Path:
    """Make `path` if it is missing, for its owner only. EngineError if others may write there, or own it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise EngineError(f"{path}: the cache folder cannot be made ({error.strerror})") from error
    if not stat.S_ISDIR(found.st_mode):
        raise EngineError(f"{path}: the cache must be a folder, got a file")
    if found.st_uid != os.geteuid():
        raise EngineError(f"{path}: the cache folder must belong to this user, got user {found.st_uid}")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise EngineError(
            f"{path}: the cache folder must be closed to others (mode 0700), got {stat.S_IMODE(found.st_mode):04o}"
        )
    return path


def open_cache(folder: Path | None) -> Cache | None:
    """The cache in `folder`; None, with a warning, if it will not do: engines work without one, too."""
    if folder is None:
        return None
    try:
        return Cache(folder)
    except EngineError as error:
        log.warning("%s; nothing is kept for the next start", error)
        return None


class Cache:
    """A private folder of entries. Processes may share it: what several of them want is made once."""

    def __init__(self, folder: Path) -> None:
        """EngineError if the folder cannot be made, or is open to others."""
        self._folder = private_folder(folder)

    def get(self, key: Key) -> bytes | None:
        """What was kept under `key`; None if nothing was, or if it is damaged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s: not readable (%s)", path, error.strerror)
            return None
        header = self._header(key)
        digest, payload = data[len(header) : len(header) + 32], data[len(header) + 32 :]
        if not data.startswith(header) or hashlib.sha256(payload).digest() != digest:
            log.warning("%s: damaged, made anew", path)
            return None
        with contextlib.suppress(OSError):
            path.touch()  # used just now: not among the first to go
        return payload

    def put(self, key: Key, payload: bytes) -> None:
        """Keep `payload`. A disk that refuses is a warning: the next start takes longer, that is all."""
        path = self._path(key)
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as partial:
                try:
                    partial.write(self._header(key) + hashlib.sha256(payload).digest() + payload)
                    partial.flush()
                    os.fsync(partial.fileno())
                    Path(partial.name).replace(path)
                except BaseException:
                    Path(partial.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            log.warning("%s: cannot be kept (%s)", path, error.strerror)
        self._forget_oldest()

    def drop(self, key: Key) -> None:
        """Forget what was kept under `key`."""
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def get_or_make(self, key: Key, make: Callable[[], bytes]) -> bytes:
        """What was kept under `key`, or else what `make` gives, which is kept.

        While another process makes the same entry, this one waits for it. What `make` raises is raised.
        """
        kept = self.get(key)
        if kept is not None:
            return kept
        lock = FileLock(self._path(key).with_suffix(".lock"), mode=0o600)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            log.info("another process builds this engine: waiting for it")
            held = lock.acquire()
        except OSError as error:  # a folder that takes no lock takes no entry either
            log.warning("%s: cannot be locked (%s)", self._folder, error.strerror)
            return make()
        with held:
            kept = self.get(key)
            if kept is None:
                kept = make()
                self.put(key, kept)
            return kept

    def _forget_oldest(self) -> None:
        with contextlib.suppress(OSError):  # another process may have been faster
            entries = sorted(self._folder.glob("*.entry"), key=lambda path: path.stat().st_mtime)
            for path in entries[:-ENTRIES_KEPT]:
                path.unlink()

    def _path(self, key: Key) -> Path:
        return self._folder / f"{hashlib.sha256(self._header(key)).hexdigest()[:32]}.entry"

    def _header(self, key: Key) -> bytes:
        return MAGIC + json.dumps(key, sort_keys=True).encode() + b"\n"

"""Whose keys are let in: a list in a file or a folder, which may change while the daemon runs.

Knows files of public keys; nothing of connections.
"""

from __future__ import annotations

import logging
from pathlib import Path

from .keys import PUBLIC, KeysError, is_key, public_key
from .private_path import check_ours

log = logging.getLogger(__name__)


class AllowList:
    """The public keys in a folder of `NAME.key` files, or in a file with a key a line.

    In a file, what follows a key on its line is a comment, and so is a line that begins with `#`, as no key does.
    It is read again when it has changed: then, what is no key is left out with a warning, and while it cannot be read,
    nobody is let in.
    """

    def __init__(self, path: str | Path) -> None:
        """KeysError if it cannot be read, holds what is no key, or may be changed by others."""
        self._path = Path(path)
        try:
            self._state: list[tuple[int, ...]] = self._look()
            self._keys, wrong = self._read()
        except OSError as error:
            raise KeysError(f"{self._path}: {_said(error)}") from error
        if wrong:
            raise KeysError(wrong[0])

    def __contains__(self, key: str) -> bool:
        self._refresh()
        return key in self._keys

    def __len__(self) -> int:
        self._refresh()
        return len(self._keys)

    def _refresh(self) -> None:
        state, keys, wrong = list[tuple[int, ...]](), frozenset[str](), list[str]()
        try:
            state = self._look()
            if state == self._state:
                return
            keys, wrong = self._read()
        except OSError as error:
            if state == self._state:  # said already
                return
            wrong = [f"{self._path}: {_said(error)}; nobody is let in"]
        for line in wrong:
            log.warning("%s", line)
        log.info("%s: %d keys are let in", self._path, len(keys))
        self._state, self._keys = state, keys

    def _files(self) -> list[Path]:
        return sorted(self._path.glob(f"*{PUBLIC}")) if self._path.is_dir() else [self._path]

    def _look(self) -> list[tuple[int, ...]]:
        """What tells that something has changed."""
        check_ours(self._path)
        found = [path.stat() for path in (self._path, *self._files())]
        return [(each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found]

    def _read(self) -> tuple[frozenset[str], list[str]]:
        """The keys, and what is wrong with the rest."""
        if not self._path.is_dir():
            return _keys_in(self._path)
        keys, wrong = set[str](), list[str]()
        for path in self._files():
            try:
                check_ours(path)
                keys.add(public_key(path))
            except (OSError, KeysError) as error:
                wrong.append(f"{path}: {_said(error)}" if isinstance(error, OSError) else str(error))
        return frozenset(keys), wrong


def _keys_in(path: Path) -> tuple[frozenset[str], list[str]]:
    """The keys in a file, a line each."""
    keys, wrong = set[str](), list[str]()
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        first = (line.split() or [""])[0]
        if is_key(first):
            keys.add(first)
        elif first and not first.startswith("#"):
            wrong.append(f"{path}, line {number}: must begin with a key of 40 characters, got {len(first)}")
    return frozenset(keys), wrong


def _said(error: OSError) -> str:
    return error.strerror or str(error)

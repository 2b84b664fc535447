"""Paths of sockets that only this user reaches, and that no second daemon can take.

Knows files, locks and `bind`; nothing of what is sent.

The name of an ipc endpoint is a file. libzmq removes whatever lies there, a living daemon's socket too, and makes a new
one as the umask says. Here the socket is made and bound before libzmq gets it: `bind` replaces nothing. Nobody can
connect before `listen`, and on Linux the file has its mode from the first; elsewhere, one whose `connect` passed the
check of the mode before it was set, and that of `listen` after, could come in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as sockets
import stat
import sys
from pathlib import Path
from typing import Any, Self

import zmq
from filelock import FileLock, Timeout

LOCK = ".lock"
_BACKLOG = 100
_LONGEST = 107 if sys.platform == "linux" else 103
"""Bytes that a socket's path may have."""


class Bound:
    """Where a ZeroMQ socket is bound; `close` it after that socket.

    endpoint: with the number in place of a port `*`.
    """

    def __init__(self, endpoint: str, path: Path | None = None, lock: FileLock | None = None) -> None:
        self.endpoint = endpoint
        self._lock, self._path = lock, path
        self._file = _identity(path) if path else None

    def close(self) -> None:
        """Give the path back; may be called again."""
        if self._path and self._file and _identity(self._path) == self._file:  # else it is somebody else's by now
            self._path.unlink()
        self._path = None
        if self._lock:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def bind(socket: zmq.Socket[Any], endpoint: str) -> Bound:
    """Bind `socket` to `tcp://HOST:PORT` or `ipc://PATH`.

    PATH becomes a socket of mode 0600, and stays ours by the lock `PATH.lock`. What a dead daemon left there is taken
    over. OSError, whose `strerror` says why, if the address is in use, if PATH is anything else, or if others may
    change its folder; zmq.ZMQError for what libzmq refuses.
    """
    path = socket_file(endpoint)
    if path is None:
        if endpoint.count(":") > 2:  # an address of IPv6, for which libzmq must be told
            socket.setsockopt(zmq.IPV6, 1)
        socket.bind(endpoint)
        return Bound(socket.getsockopt_string(zmq.LAST_ENDPOINT))
    _check_name(path)
    _check_folder(path.parent)
    _check_place(path)  # before there is a lock, which would lie beside a file that is none of ours
    lock = _locked(path)
    try:
        _clear(path)
        _bind_file(socket, path)
        return Bound(endpoint, path, lock)
    except BaseException:
        lock.release()
        raise


def socket_file(endpoint: str) -> Path | None:
    """The file of an ipc endpoint; None for others, and for names of Linux's abstract namespace."""
    name = endpoint.removeprefix("ipc://")
    return None if name == endpoint or name.startswith("@") else Path(name)


def check_ours(path: Path) -> None:
    """OSError if somebody other than this user and root owns `path`, or may change it.

    A folder with the sticky bit, as `/tmp` has it, is nobody else's to change what we keep in it.
    """
    found = path.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(errno.EPERM, f"{path} must belong to this user or root, got user {found.st_uid}")
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_mode & 0o022 and not sticky:
        mode = stat.S_IMODE(found.st_mode)
        rule = f"must be closed to others' writing (chmod go-w {path})"
        raise PermissionError(errno.EPERM, f"{path} {rule}, got mode {mode:04o}")


def _check_name(path: Path) -> None:
    if str(path) == "*" or "\0" in str(path):  # `*` would be a name of libzmq's choice
        raise OSError(errno.EINVAL, "it must name a file")
    if (size := len(os.fsencode(path))) > _LONGEST:
        raise OSError(errno.ENAMETOOLONG, f"the path must be at most {_LONGEST} bytes, got {size}")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"the folder {folder} is not there")
    check_ours(folder)


def _locked(path: Path) -> FileLock:
    # thread_local: the thread that closes is not always the one that opened.
    lock = FileLock(f"{path}{LOCK}", timeout=0, mode=0o600, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise OSError(errno.EADDRINUSE, "the address is in use") from error
    return lock


def _check_place(path: Path) -> bool:
    """Whether there is a socket of ours at `path`. OSError for all else that may lie there."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "a file of this name exists, and is no socket")
    if found.st_uid != os.geteuid():
        raise FileExistsError(errno.EEXIST, f"the socket there must belong to this user, got user {found.st_uid}")
    return True


def _clear(path: Path) -> None:
    """Remove what a dead daemon left. OSError for all else that lies at `path`."""
    if not _check_place(path):
        return
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:  # a program that knows no lock
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # it listens, with a full queue
            pass
    raise OSError(errno.EADDRINUSE, "the address is in use")


def _bind_file(socket: zmq.Socket[Any], path: Path) -> None:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as listener:
        listener.setblocking(False)  # libzmq's thread must not wait in accept for a peer that has gone again
        with contextlib.suppress(OSError):  # Linux takes it over into the file; others refuse
            os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        try:
            path.chmod(0o600)
            listener.listen(_BACKLOG)
            socket.setsockopt(zmq.USE_FD, listener.fileno())
            socket.bind(f"ipc://{path}")
        except BaseException:
            path.unlink()
            raise
        listener.detach()  # libzmq closes it
        socket.setsockopt(zmq.USE_FD, -1)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino

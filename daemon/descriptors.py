"""Connections that libzmq keeps, by their file descriptors: who is there, how much came, and how to end one.

Knows the system's sockets; nothing of ZeroMQ. A descriptor may be closed at any time, and be another thing's then.
"""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import stat
import struct
import sys

_BYTES_RECEIVED = 128
"""Where Linux's `struct tcp_info` has `tcpi_bytes_received`."""


def identity(descriptor: int) -> int | None:
    """What tells this socket from every other one that there is; None where there is none."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_ino if stat.S_ISSOCK(found.st_mode) else None


def peer(descriptor: int) -> str:
    """The address at the other end, if somebody is still there."""
    with contextlib.suppress(OSError), _copy(descriptor) as socket:
        address = socket.getpeername()
        return str(address[0]) if isinstance(address, tuple) else "a process of this host"
    return "somebody"


def received(descriptor: int) -> int:
    """Bytes that have come over a TCP connection; 0 where that is not known (other systems, ipc)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, struct.error):
            socket = sockets.socket(sockets.AF_INET, sockets.SOCK_STREAM, 0, descriptor)
            try:
                info = socket.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _BYTES_RECEIVED + 8)
            finally:
                socket.detach()  # it is libzmq's
            return int(struct.unpack_from("=Q", info, _BYTES_RECEIVED)[0])
    return 0


def cut(descriptor: int, expected: int | None) -> None:
    """End the connection whose `identity` is `expected`, if it is still there: libzmq finds that its peer has gone."""
    with contextlib.suppress(OSError), _copy(descriptor) as socket:
        if expected is not None and identity(socket.fileno()) == expected:
            # Nothing lingers: else a peer that goes on sending is told late, and its bytes are kept until then.
            socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
            socket.shutdown(sockets.SHUT_RDWR)


def _copy(descriptor: int) -> sockets.socket:
    """The same socket, which libzmq cannot close meanwhile."""
    return sockets.fromfd(descriptor, sockets.AF_INET, sockets.SOCK_STREAM)

"""A pair of UDP sockets for RTP and RTCP.

Knows neither; it waits for nothing by itself.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Iterator
from typing import Any, Final

from .connection import Sockets
from .errors import RtspError

_BUFFER: Final = 4 * 1024 * 1024  # a key frame comes in one burst; the system may allow less
_LONGEST: Final = 64 * 1024
_MOST_AT_ONCE: Final = 256
_PORT_TRIES: Final = 100


class UdpPair:
    """Sockets for RTP and RTCP on an even port and the next, which take packets from one host only."""

    def __init__(self, family: int, local: str, sockets: Sockets) -> None:
        self._sockets = sockets
        self.rtp, self.rtcp = _bound_pair(family, local)
        self.port: int = self.rtp.getsockname()[1]
        for one in (self.rtp, self.rtcp):
            one.setblocking(False)
        self.rtp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)

    def receive(self, one: socket.socket, hosts: Collection[str]) -> Iterator[bytes]:
        """The packets that have arrived from `hosts`, at most a few hundred."""
        for _ in range(_MOST_AT_ONCE):
            try:
                data, place = one.recvfrom(_LONGEST)
            except OSError:  # nothing more; or the other end's port is closed, which it may well be for a while
                return
            if place[0] in hosts:
                yield data

    def watch(self) -> None:
        """Wait for packets from now on."""
        for one in (self.rtp, self.rtcp):
            self._sockets.watch(one)

    def send(self, one: socket.socket, data: bytes, place: Any) -> None:
        """Send a packet, or lose it, as UDP may."""
        with contextlib.suppress(OSError):
            one.sendto(data, place)

    def close(self) -> None:
        for one in (self.rtp, self.rtcp):
            self._sockets.forget(one)
            one.close()


def _bound_pair(family: int, local: str) -> tuple[socket.socket, socket.socket]:
    for _ in range(_PORT_TRIES):
        first, second = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        with contextlib.suppress(OSError):
            first.bind((local, 0))
            port = first.getsockname()[1]
            if port % 2:
                # The odd one will be for RTCP: the port before it is as good as any.
                first, second = second, first
                first.bind((local, port - 1))
            else:
                second.bind((local, port + 1))
            return first, second
        first.close()
        second.close()
    raise RtspError("two UDP ports in a row must be free, got none")

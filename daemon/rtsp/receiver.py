"""The thread that connects to a camera, and takes in its packets while frames are decoded elsewhere.

Knows no decoder. Without a thread of its own, packets over UDP would be lost while a large frame is decoded: the
system keeps about 200 kB of them, which is less than many a key frame.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from ..address import Address
from ..channel import Channel, ClosedError
from ..source import LiveOptions
from .assembly import REPORT_EVERY_S, AccessUnit, Assembly
from .client import RtspClient
from .connection import Stop
from .errors import FrozenError, StoppedError
from .sdp import VideoTrack

_MOST_WAITING: Final = 256
"""Access units that may wait for the decoder: after a network stands still, many come at once."""
_LARGE: Final = 1024 * 1024
_MOST_BEFORE_LARGE: Final = 16
"""Access units of more than _LARGE bytes wait in a shorter line, so that memory has a bound."""


class Receiver:
    """One session with a camera. `units` gives its access units, and closes when it is over; `error` says why.

    Whoever makes it must `start` it, and in the end `stop` and `join` it.
    """

    def __init__(self, address: Address, options: LiveOptions, *, stream: str) -> None:
        self.units: Channel[AccessUnit] = Channel(_MOST_WAITING, "drop_oldest")
        self.error: Exception | None = None
        self.track: VideoTrack | None = None
        """What the access units are of; there before the first."""
        self._address, self._options = address, options
        self._assembly: Assembly | None = None
        self._stop = Stop()
        self._thread = threading.Thread(target=self._run, name=f"rtsp {stream}")

    @property
    def lost_packets(self) -> int:
        return self._assembly.lost if self._assembly else 0

    @property
    def malformed_packets(self) -> int:
        return self._assembly.malformed if self._assembly else 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End soon, from any thread, whatever is waited for."""
        self._stop.set()
        self.units.close(discard=True)

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()
        self._stop.close()

    def _run(self) -> None:
        try:
            self._receive()
        except (StoppedError, ClosedError):
            pass
        except Exception as error:  # noqa: BLE001 - the edge of a thread: the one that takes the units raises it
            self.error = error
        finally:
            self.units.close()

    def _receive(self) -> None:
        options = self._options
        client = RtspClient(self._address, self._stop, options)
        try:
            self.track = client.open()
            self._assembly = Assembly(self.track, reorder=options.transport == "udp")
            self._pass_on(client, self._assembly)
        finally:
            client.close()

    def _pass_on(self, client: RtspClient, assembly: Assembly) -> None:
        whole = reported = time.monotonic()
        heard = False
        while True:
            units: list[AccessUnit] = []
            for packet in client.receive(
                min(whole + self._options.timeout_s, reported + REPORT_EVERY_S, assembly.deadline)
            ):
                heard = True
                if packet.kind == "rtp":
                    units += assembly.rtp(packet.data, time.monotonic())
                else:
                    assembly.rtcp(packet.data, time.monotonic())
            now = time.monotonic()
            units += assembly.tick(now)
            for unit in units:
                if len(unit.data) <= _LARGE or len(self.units) < _MOST_BEFORE_LARGE:
                    self.units.put(unit)
                if unit.complete:
                    whole = now
            if now - whole >= self._options.timeout_s:
                raise FrozenError(self._frozen(heard))
            if now - reported >= REPORT_EVERY_S:
                client.report(assembly.report(now))
                reported = now

    def _frozen(self, heard: bool) -> str:
        text = f"frozen: no whole frame came for {self._options.timeout_s:g} s"
        if not heard and self._options.transport == "udp":
            text += ", nor any packet; where a firewall lets none through, set transport 'tcp'"
        return text

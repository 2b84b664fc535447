"""Frames of an RTSP camera with the least delay, by a client of our own that sees every lost packet.

Knows one attempt at one camera; nothing of retrying.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from types import TracebackType
from typing import Final, Self

from ..address import Address, redact
from ..colour import colour_of, to_rgb
from ..errors import SourceError
from ..frame import Frame
from ..source import LiveOptions, Progress
from .decoder import Decoded, Decoder
from .errors import FrozenError, RtspError
from .receiver import Receiver

_LATE_NS: Final = 1_000_000_000
_UNDECODED: Final = 4  # times timeout_s: how long access units may come of which none gives a frame


class RtspSource:
    """One attempt at an RTSP camera, H.264, H.265 or MJPEG, over TCP or UDP; a `daemon.source.LiveSource`.

    Access units are decoded as soon as their last packet is there. Where decoding and converting is too slow for the
    camera, old frames are only decoded (`seq` counts them), so that those that are yielded stay young.
    """

    live: Final = True
    damage: Final = ()

    def __init__(
        self,
        address: Address,
        options: LiveOptions,
        *,
        stream: str,
        on_state: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._address, self._options, self._stream, self._on_state = address, options, stream, on_state
        self._lock = threading.Lock()
        self._closed = False
        self._receiver: Receiver | None = None
        self._decoder: Decoder | None = None
        self._late = 0

    @property
    def counters(self) -> Mapping[str, int]:
        """What is counted, by name.

        lost_packets never came; malformed_packets made no sense; damaged_frames did not come or decode wholly;
        held_frames were held back until the next key frame; late_frames were decoded, and passed over for newer ones.
        """
        receiver, decoder = self._receiver, self._decoder
        return {
            "lost_packets": receiver.lost_packets if receiver else 0,
            "malformed_packets": receiver.malformed_packets if receiver else 0,
            "damaged_frames": decoder.damaged if decoder else 0,
            "held_frames": decoder.held if decoder else 0,
            "late_frames": self._late,
        }

    def __iter__(self) -> Iterator[Frame]:
        """The frames; once."""
        try:
            with self._lock:
                if self._closed:
                    return
                self._receiver = receiver = Receiver(self._address, self._options, stream=self._stream)
            self._on_state("connecting")
            receiver.start()
            try:
                yield from self._frames(receiver)
            finally:
                receiver.stop()
                receiver.join()
            if receiver.error is not None and not self._closed:
                raise receiver.error
        except FrozenError as error:
            self._on_state("frozen")
            raise self._failure(error) from None
        except RtspError as error:
            raise self._failure(error) from None
        except OSError as error:  # such as too many open files
            raise SourceError(f"{self._address}: this host has no room for a session ({error.strerror})") from None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            receiver = self._receiver
        if receiver is not None:
            receiver.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        if self._receiver is not None:
            self._receiver.join()

    def _frames(self, receiver: Receiver) -> Iterator[Frame]:
        seq = 0
        given_s = time.monotonic()
        patience_s = _UNDECODED * self._options.timeout_s
        for unit in receiver.units:
            assert receiver.track is not None
            if self._decoder is None:
                self._decoder = Decoder(
                    receiver.track, max_pixels=self._options.max_pixels, deinterlace=self._options.deinterlace
                )
            late = time.monotonic_ns() - unit.arrived_ns > _LATE_NS and len(receiver.units) > 0
            for decoded in self._decoder.decode(unit):
                if late:
                    self._late += 1
                else:
                    if seq == self._late:
                        self._on_state("live")
                    yield self._frame(decoded, seq, receiver.track.clock_rate)
                    if self._closed:
                        return
                seq += 1
                given_s = time.monotonic()
            if time.monotonic() - given_s > patience_s:
                raise RtspError(
                    f"the camera sends packets, but no clean key frame for {patience_s:g} s;"
                    " set it to send key frames (IDR) more often"
                )

    def _frame(self, decoded: Decoded, seq: int, clock_rate: int) -> Frame:
        unit = decoded.unit
        began = time.monotonic_ns()
        pixels = to_rgb(decoded.frame)
        return Frame(
            stream=self._stream,
            seq=seq,
            pts=unit.rtp_time,
            time_base=Fraction(1, clock_rate),
            captured_ns=unit.arrived_unix_ns if unit.captured_ns is None else unit.captured_ns,
            clock="arrival" if unit.captured_ns is None else "sender",
            arrived_ns=decoded.arrived_ns,
            pixels=pixels,
            colour=colour_of(decoded.frame),
            sample_aspect_ratio=decoded.sample_aspect_ratio,
            rotation=decoded.frame.rotation,
            spent_ns={"decode": decoded.decode_ns, "convert": time.monotonic_ns() - began},
            origin=decoded.frame,
        )

    def _failure(self, error: RtspError) -> SourceError:
        text = f"{self._address}: {error.text}{redact(error.got, self._address)}"
        return SourceError(text, lasting=error.lasting)

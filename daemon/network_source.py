"""Frames of a network stream, read by FFmpeg: RTSP over TCP, MJPEG over HTTP, HLS, and files that a web server has.

Knows one attempt at one stream; nothing of retrying. What may be opened is the matter of `network_media`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from .address import Address
from .colour import colour_of, to_rgb
from .errors import SourceError
from .frame import Frame
from .network_reader import FrozenError, NetworkReader
from .source import LiveOptions, Progress

_MOST_LATE_S, _MOST_EARLY_S = 1.0, 10.0  # beyond, times have jumped


class NetworkSource:
    """One attempt at a network stream; a `daemon.source.LiveSource`.

    RTP comes over TCP, whatever `options.transport` says: FFmpeg shows no loss of UDP packets.
    A connection that closes breaks the attempt with SourceError; a video that has an end, such as a file on a web
    server or a complete HLS playlist, ends.

    Frames are held back after damage until the next key frame. Those of HLS and of files come when they are due,
    since they are read in bursts. `pts` of MJPEG over HTTP, which carries no times, is that of arrival.

    Over HTTP no proxy is used; redirects and playlists may lead to the host of the address and to public hosts, not to
    others inside. Encrypted HLS is refused.
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
        self._reader = NetworkReader(address, options)

    @property
    def counters(self) -> Mapping[str, int]:
        """damaged_frames did not decode, or not wholly; held_frames were held back until the next key frame."""
        return {"damaged_frames": self._reader.damaged_frames, "held_frames": self._reader.held_frames}

    def __iter__(self) -> Iterator[Frame]:
        """The frames; once."""
        if self._reader.abandoned.is_set():
            return
        self._on_state("connecting")
        self._reader.start()
        try:
            frames = self._frames()
            first = next(frames, None)
            if first is None:
                return
            self._on_state("live")
            yield first
            yield from self._when_due(first, frames) if self._reader.paced else frames
        finally:
            self._reader.abandon()

    def close(self) -> None:
        self._reader.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _frames(self) -> Iterator[Frame]:
        seq = 0
        while True:
            try:
                decoded = self._reader.take()
            except FrozenError:
                self._on_state("frozen")
                raise SourceError(f"{self._address}: frozen: nothing came for {self._options.timeout_s:g} s") from None
            if decoded is None:
                return
            began = time.monotonic_ns()
            pixels = to_rgb(decoded.frame)
            yield Frame(
                stream=self._stream,
                seq=seq,
                pts=decoded.pts,
                time_base=decoded.time_base,
                captured_ns=decoded.received.sender_ns or decoded.received.unix_ns,
                clock="sender" if decoded.received.sender_ns else "arrival",
                arrived_ns=decoded.arrived_ns,
                pixels=pixels,
                colour=colour_of(decoded.frame),
                sample_aspect_ratio=decoded.sample_aspect_ratio,
                rotation=decoded.frame.rotation,
                spent_ns={"decode": decoded.decode_ns, "convert": time.monotonic_ns() - began},
                origin=decoded.frame,
            )
            seq += 1

    def _when_due(self, first: Frame, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Frames by their times, from the first on; their age counts from when they are due."""
        offset_s = time.monotonic() - (first.time_s or 0.0)
        for frame in frames:
            now = due = time.monotonic()
            if frame.time_s is not None:
                due = frame.time_s + offset_s
                if not -_MOST_LATE_S <= due - now <= _MOST_EARLY_S:
                    due = now
                offset_s = due - frame.time_s
                if self._reader.abandoned.wait(max(0.0, due - now)):
                    return
            late_ns = max(0, time.monotonic_ns() - round(due * 1e9))
            captured_ns = frame.captured_ns if frame.clock == "sender" else time.time_ns() - late_ns
            yield replace(frame, arrived_ns=round(due * 1e9), captured_ns=captured_ns)

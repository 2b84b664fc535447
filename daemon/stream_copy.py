"""Streams of a file that go into another as they are, packet by packet.

Knows containers and packets; decodes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer, OutputContainer
from av.stream import Stream

from .media import reason
from .timespan import Window


class StreamCopy:
    """Copies streams from `source` to `output`; `notes` gets one line for each thing that is left out.

    window: the part of the source's time that is copied; None is all of it.
    """

    def __init__(
        self, source: InputContainer, output: OutputContainer, notes: list[str], window: Window | None = None
    ) -> None:
        self._source, self._output, self._notes, self._window = source, output, notes, window
        self._streams: dict[int, Stream] = {}
        self._packets: Iterator[av.Packet[Any]] | None = None
        self._next: av.Packet[Any] | None = None
        self._ended = False
        self._last_dts: dict[int, int] = {}
        self._shifts: dict[int, int] = {}

    def add(self, stream: Stream) -> Stream | None:
        """A stream like `stream` in the output, to be filled by `up_to`; None if the output cannot hold it."""
        container = self._output.format.name
        try:
            if stream.type == "attachment" and container != "matroska":
                raise ValueError  # other muxers fail only later, when they write the header
            copy = self._output.add_stream_from_template(stream)
        except (av.FFmpegError, ValueError):
            kind = f"{stream.type}, {stream.codec_context.name}" if stream.codec_context else stream.type
            self._notes.append(f"stream {stream.index} ({kind}) is left out: {container} cannot hold it")
            return None
        self._streams[stream.index] = copy
        return copy

    def up_to(self, time_s: Fraction | None) -> None:
        """Write all packets until `time_s`; None writes all that are left."""
        while (packet := self._peek()) is not None:
            stamp = packet.dts if packet.dts is not None else packet.pts
            if time_s is not None and stamp is not None and stamp * packet.time_base > time_s:
                return
            self._next = None
            self._write(packet)

    def _peek(self) -> av.Packet[Any] | None:
        if self._next is not None or self._ended:
            return self._next
        if self._packets is None:
            timed = [self._source.streams[i] for i, copy in self._streams.items() if copy.type != "attachment"]
            self._packets = self._source.demux(timed) if timed else iter(())
        try:
            self._next = next((packet for packet in self._packets if self._belongs(packet)), None)
        except av.FFmpegError as error:
            self._notes.append(f"the other streams end where the file is damaged ({reason(error)})")
        self._ended = self._next is None
        return self._next

    def _belongs(self, packet: av.Packet[Any]) -> bool:
        """Whether it is copied; it is given its time in the result."""
        return bool(packet.size) and not packet.is_corrupt and (not self._window or self._window.place(packet))

    def _write(self, packet: av.Packet[Any]) -> None:
        index = packet.stream_index
        if packet.dts is None and packet.pts is None:
            packet.dts = packet.pts = 0  # a cover picture has no time
        if packet.dts is not None:
            shift, last = self._shifts.get(index, 0), self._last_dts.get(index)
            if last is not None and packet.dts + shift < last:  # a clock that began anew
                shift = self._shifts[index] = last + max(1, packet.duration or 0) - packet.dts
            packet.dts += shift
            if packet.pts is not None:
                packet.pts += shift
            self._last_dts[index] = packet.dts
        packet.stream = self._streams[index]
        try:
            self._output.mux_one(packet)
        except av.InvalidDataError:
            line = f"damaged packets of stream {index} are left out"
            if line not in self._notes:
                self._notes.append(line)

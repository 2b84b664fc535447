"""The packets of a file's video, from its beginning or a key frame to its end or a stop, past what cannot be read.

Knows containers; decodes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from .media import reason
from .plan import KeyFrame

_MOST_READ_ERRORS: Final = 100  # in a row
_JUMP_BACK_S: Final = 1.0  # more than frames are out of order


class VideoPackets:
    """Reads `video` of `container`.

    stop: where no packet is needed any more that is shown from there on, in units of the stream's time base.
    damage: gets a line where the file cannot be read; reading goes on behind it.
    """

    def __init__(self, container: InputContainer, video: VideoStream, stop: int | None, damage: list[str]) -> None:
        self._container, self._video, self._damage = container, video, damage
        self._stop = None if container.format.name == "avi" else stop  # AVI has no times of presentation
        self._closed = False
        self.end_s = 0.0
        """Where the last packet of any stream ended, as if no clock had begun anew."""
        self._clocks: dict[int, tuple[float, float]] = {}  # of each stream, the last end and what was added to it

    def read(self, key: KeyFrame | None) -> Iterator[av.Packet[VideoStream] | None]:
        """Every packet, and None at the end, which makes a decoder give what it holds.

        key: the first to be given; none comes where the container was sought beyond it.

        The end is also at the first packet after a key frame from `stop` on that is shown after it: those between are
        shown before it, as in open groups of pictures.
        """
        errors = 0
        closing: int | None = None  # pts of that key frame
        packets = self._container.demux()
        while errors < _MOST_READ_ERRORS and not self._closed:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                if not errors:
                    self._damage.append(f"the file is damaged at {self.end_s:.3f} s ({reason(error)})")
                errors += 1
                packets = self._container.demux()
                continue
            if packet is None:
                break
            errors = 0
            if not packet.size:  # PyAV's own mark of the end
                continue
            self._note_end(packet)
            if packet.stream_index != self._video.index:
                continue
            if key and not (packet.is_keyframe and packet.pts == key.pts):
                if packet.dts is not None and packet.dts > key.dts:
                    return
                continue
            key = None
            if self._stop is not None and packet.pts is not None:
                if closing is not None and packet.pts > closing:
                    break
                if closing is None and packet.is_keyframe and packet.pts >= self._stop:
                    closing = packet.pts
            yield cast("av.Packet[VideoStream]", packet)
        if not self._closed:
            yield None

    def close(self) -> None:
        """End the reading before the next packet; any thread may call this."""
        self._closed = True

    def _note_end(self, packet: av.Packet[Any]) -> None:
        if packet.pts is None:
            return
        end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
        last, shift = self._clocks.get(packet.stream_index, (end, 0.0))
        if last - end > _JUMP_BACK_S:
            shift += last
        self._clocks[packet.stream_index] = end, shift
        self.end_s = max(self.end_s, end + shift)

"""H.264 and H.265 out of RTP payloads: what the packets of one access unit hold, as Annex B.

Knows neither sequence numbers nor timestamps. RFC 6184 and RFC 7798.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from .errors import RtpError, RtspError
from .sdp import VideoTrack
from .sps import h264_size, h265_size

MAX_UNIT: Final = 16 * 1024 * 1024
_START_CODE: Final = b"\x00\x00\x00\x01"
_LONGEST_HEAD: Final = 1024  # of a NAL unit, as far as it is looked at


@dataclass(frozen=True, slots=True)
class Picture:
    """What was taken out of the packets of one access unit.

    data: Annex B, or a JPEG file.
    key: decoding can begin here: IDR of H.264, IRAP of H.265, every JPEG.
    intact: nothing of it is known to be missing.
    size: coded width and height, where this access unit says so.
    whole_start: it begins where a picture does.
    """

    data: bytes
    key: bool
    intact: bool
    size: tuple[int, int] | None
    whole_start: bool = True


class Payload(Protocol):
    """Takes in the payloads of an access unit one after the other, and gives it at its end."""

    def add(self, payload: bytes) -> None:
        """Raises RtpError for a payload that makes no sense, RtspError for a format that is not supported."""

    def damage(self) -> None:
        """Something is missing here, of this access unit as far as can be known."""

    @property
    def has_picture(self) -> bool:
        """There is more than what comes before a picture, such as parameter sets."""

    def take(self) -> Picture:
        """What came since the last call."""


class H264Payload:
    """RFC 6184 in packetization modes 0 and 1."""

    _NAMES: Final = {25: "STAP-B", 26: "MTAP16", 27: "MTAP24", 29: "FU-B"}

    def __init__(self) -> None:
        self._unit = _Unit(_H264)
        self.damage, self.take = self._unit.damage, self._unit.take

    @property
    def has_picture(self) -> bool:
        return self._unit.has_picture

    def add(self, payload: bytes) -> None:
        if len(payload) < 2 or payload[0] & 0x80:
            raise RtpError(f"a payload of H.264 must have 2 bytes and no error bit, got {payload[:2].hex()}")
        kind = payload[0] & 0x1F
        if kind == 28:
            head = bytes([payload[0] & 0xE0 | payload[1] & 0x1F])
            self._unit.fragment(head, payload[1], payload[2:])
        elif kind == 24:
            for nal in _split(payload[1:]):
                self._unit.add(nal)
        elif kind in self._NAMES:
            raise RtspError(f"H.264 must come in packetization mode 0 or 1, got {self._NAMES[kind]} packets of mode 2")
        elif 1 <= kind <= 23:
            self._unit.add(payload)
        else:
            raise RtpError(f"a payload of H.264 must be of type 1 to 29, got {kind}")


class H265Payload:
    """RFC 7798. donl: packets carry decoding order numbers; they are passed over, since units come in that order."""

    def __init__(self, donl: bool = False) -> None:
        self._unit = _Unit(_H265)
        self._donl = 2 if donl else 0
        self.damage, self.take = self._unit.damage, self._unit.take

    @property
    def has_picture(self) -> bool:
        return self._unit.has_picture

    def add(self, payload: bytes) -> None:
        if len(payload) < 3 or payload[0] & 0x80:
            raise RtpError(f"a payload of H.265 must have 3 bytes and no error bit, got {payload[:3].hex()}")
        kind = payload[0] >> 1 & 0x3F
        if kind == 49:
            head = bytes([payload[0] & 0x81 | (payload[2] & 0x3F) << 1, payload[1]])
            skip = 3 + (self._donl if payload[2] & 0x80 else 0)
            self._unit.fragment(head, payload[2], payload[skip:])
        elif kind == 48:
            for nal in _split(payload[2:], first=self._donl, later=self._donl // 2):
                self._unit.add(nal)
        elif kind < 48:
            self._unit.add(payload[:2] + payload[2 + self._donl :])
        else:
            raise RtpError(f"a payload of H.265 must be of type 0 to 49, got {kind}")


def nal_payload(track: VideoTrack) -> Payload:
    """What takes in the packets of an H.264 or H.265 track."""
    return H264Payload() if track.codec == "h264" else H265Payload(track.donl)


def annex_b(nals: tuple[bytes, ...]) -> bytes:
    """NAL units with their start codes."""
    return b"".join(_START_CODE + nal for nal in nals)


def _split(payload: bytes, first: int = 0, later: int = 0) -> Iterator[bytes]:
    """The NAL units of an aggregation packet; `first` and `later` are bytes of order numbers before their sizes."""
    at, skip = 0, first
    while at < len(payload):
        at += skip
        size = int.from_bytes(payload[at : at + 2], "big")
        nal = payload[at + 2 : at + 2 + size]
        if not size or len(nal) < size:
            raise RtpError(f"a NAL unit in an aggregation packet must have {size} bytes as it says, got {len(nal)}")
        yield nal
        at, skip = at + 2 + size, later


@dataclass(frozen=True)
class _Rules:
    """What differs between the codecs. first: whether a slice begins a picture."""

    head: int
    kind: Callable[[bytes], int]
    slices: range
    keys: range
    parameter_set: int
    size: Callable[[bytes], tuple[int, int]]

    def first(self, nal: bytes) -> bool:
        return len(nal) > self.head and bool(nal[self.head] & 0x80)


_H264: Final = _Rules(1, lambda nal: nal[0] & 0x1F, range(1, 6), range(5, 6), 7, h264_size)
_H265: Final = _Rules(2, lambda nal: nal[0] >> 1 & 0x3F, range(32), range(16, 24), 33, h265_size)


class _Unit:
    """The NAL units of an access unit, in one growing buffer."""

    def __init__(self, rules: _Rules) -> None:
        self._rules = rules
        self._clear()

    def _clear(self) -> None:
        self._data = bytearray()
        self._fragment: int | None = None  # where the NAL unit that is being put together begins
        self._intact = True
        self._key = False
        self._size: tuple[int, int] | None = None
        self._whole_start: bool | None = None

    @property
    def has_picture(self) -> bool:
        return self._whole_start is not None or self._fragment is not None

    def damage(self) -> None:
        self._intact = False
        self._drop_fragment()

    def take(self) -> Picture:
        if self._fragment is not None:
            self.damage()
        whole = self._whole_start is True
        picture = Picture(bytes(self._data), self._key, self._intact and whole, self._size, whole)
        self._clear()
        return picture

    def add(self, nal: bytes) -> None:
        if self._fragment is not None:
            self.damage()
        self._append(_START_CODE + nal)
        self._note(nal[:_LONGEST_HEAD])

    def fragment(self, head: bytes, flags: int, body: bytes) -> None:
        """A piece of a NAL unit; bit 7 of flags: the first, bit 6: the last."""
        if flags & 0x80:
            if self._fragment is not None:
                self.damage()
            begin = len(self._data)
            self._append(_START_CODE + head + body)
            self._fragment = begin
        elif self._fragment is None:
            self._intact = False  # its beginning is missing
            return
        else:
            self._append(body)
        if flags & 0x40 and self._fragment is not None:
            begin = self._fragment + len(_START_CODE)
            self._fragment = None
            self._note(bytes(self._data[begin : begin + _LONGEST_HEAD]))

    def _append(self, data: bytes) -> None:
        if len(self._data) + len(data) > MAX_UNIT:
            self._clear()
            self._intact = False
            raise RtpError(f"an access unit must have at most {MAX_UNIT} bytes")
        self._data += data

    def _note(self, nal: bytes) -> None:
        rules = self._rules
        kind = rules.kind(nal)
        if kind in rules.slices:
            if self._whole_start is None:
                self._whole_start = rules.first(nal)
            self._key = self._key or kind in rules.keys
        elif kind == rules.parameter_set:
            with suppress(RtpError):  # what cannot be read here, the decoder may
                self._size = rules.size(nal)

    def _drop_fragment(self) -> None:
        if self._fragment is not None:
            del self._data[self._fragment :]
            self._fragment = None

"""Encoded video cut into RTP payloads: H.264 (RFC 6184), H.265 (RFC 7798) and JPEG (RFC 2435).

Knows no sockets and no encoder; needs the standard library only.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Codec = Literal["h264", "h265", "mjpeg"]

MTU = 1400
"""Greatest payload in bytes."""


@dataclass(frozen=True)
class Unit:
    """An encoded frame.

    data: Annex B with start codes, or a JPEG file.
    number: the frame's number in display order, which its bar code says too.
    key: decoding can begin here.
    """

    data: bytes
    number: int
    key: bool = True


@dataclass(frozen=True)
class Clip:
    """Frames encoded beforehand, in decoding order; they are served in an endless loop, so the first is a key frame."""

    codec: Codec
    width: int
    height: int
    rate: Fraction
    units: tuple[Unit, ...]

    @property
    def delay(self) -> int:
        """How many frames later than it was filmed a frame can be sent at the earliest: 0 without B-frames."""
        return max(place - unit.number for place, unit in enumerate(self.units)) if self.units else 0

    def open(self) -> Callable[[int], Unit]:
        return lambda index: self.units[index % len(self.units)]


@dataclass(frozen=True)
class LiveFeed:
    """Frames encoded while they are served, without B-frames.

    start: makes an encoder for one client, a function from the frame's number to its encoded bytes.
    """

    codec: Codec
    width: int
    height: int
    rate: Fraction
    start: Callable[[], Callable[[int], bytes]]
    delay: int = 0

    def open(self) -> Callable[[int], Unit]:
        encode = self.start()

        def unit(index: int) -> Unit:
            data = encode(index)
            return Unit(data, index, is_key(data, self.codec))

        return unit


Feed = Clip | LiveFeed


def nal_units(data: bytes) -> list[bytes]:
    """The NAL units of an access unit in Annex B, without start codes."""
    marks = list(re.finditer(b"\x00\x00\x01", data))
    ends = [mark.start() for mark in marks[1:]] + [len(data)]
    # A zero byte before a start code belongs to the start code; a NAL unit never ends in one.
    return [data[mark.end() : end].rstrip(b"\x00") for mark, end in zip(marks, ends, strict=True)]


def nal_type(nal: bytes, codec: Codec) -> int:
    return nal[0] >> 1 & 63 if codec == "h265" else nal[0] & 31


def is_key(data: bytes, codec: Codec) -> bool:
    """Whether decoding can begin at this frame: IDR, or IRAP of H.265, or any JPEG."""
    if codec == "mjpeg":
        return True
    keys = range(16, 24) if codec == "h265" else (5,)
    return any(nal_type(nal, codec) in keys for nal in nal_units(data))


def parameter_sets(data: bytes, codec: Codec) -> list[bytes]:
    """The parameter sets of a key frame in order of their types: VPS, SPS, PPS."""
    kinds = (32, 33, 34) if codec == "h265" else (7, 8)
    found = {nal_type(nal, codec): nal for nal in nal_units(data) if nal_type(nal, codec) in kinds}
    return [found[kind] for kind in kinds if kind in found]


def media_lines(codec: Codec, sets: Sequence[bytes]) -> list[str]:
    """What SDP says of the coding; `sets` are the parameter sets to announce, or none."""
    coded = [base64.b64encode(item).decode() for item in sets]
    if codec == "mjpeg":
        return ["m=video 0 RTP/AVP 26", "a=rtpmap:26 JPEG/90000"]
    if codec == "h264":
        sprop = f";sprop-parameter-sets={','.join(coded)}" if coded else ""
        return ["m=video 0 RTP/AVP 96", "a=rtpmap:96 H264/90000", f"a=fmtp:96 packetization-mode=1{sprop}"]
    names = ("sprop-vps", "sprop-sps", "sprop-pps")
    sprop = "; ".join(f"{name}={item}" for name, item in zip(names, coded, strict=False))
    return ["m=video 0 RTP/AVP 96", "a=rtpmap:96 H265/90000", *([f"a=fmtp:96 {sprop}"] if sprop else [])]


def payload_type(codec: Codec) -> int:
    return 26 if codec == "mjpeg" else 96


def payloads(data: bytes, codec: Codec, *, aggregate: bool = True) -> list[bytes]:
    """The RTP payloads of a frame; the last one is sent with the marker bit.

    aggregate: small NAL units that follow each other, such as parameter sets, share a packet.
    """
    if codec == "mjpeg":
        return list(_jpeg(data))
    delimiter = 35 if codec == "h265" else 9
    nals = [nal for nal in nal_units(data) if nal_type(nal, codec) != delimiter]
    result: list[bytes] = []
    for group in _groups(nals) if aggregate else ([nal] for nal in nals):
        if len(group) > 1:
            result.append(_aggregated(group, codec))
        elif len(group[0]) <= MTU:
            result.append(group[0])
        else:
            result.extend(_fragments(group[0], codec))
    return result


def _groups(nals: Sequence[bytes]) -> Iterator[list[bytes]]:
    """NAL units that fit one packet together."""
    group: list[bytes] = []
    for nal in nals:
        if group and sum(len(item) + 2 for item in [*group, nal]) + 2 > MTU:
            yield group
            group = []
        group.append(nal)
    yield group


def _aggregated(nals: Sequence[bytes], codec: Codec) -> bytes:
    """STAP-A of H.264, AP of H.265."""
    if codec == "h265":
        head = bytes([nals[0][0] & 0x81 | 48 << 1, nals[0][1]])
    else:
        head = bytes([max(nal[0] & 0x60 for nal in nals) | 24])
    return head + b"".join(struct.pack(">H", len(nal)) + nal for nal in nals)


def _fragments(nal: bytes, codec: Codec) -> Iterator[bytes]:
    """FU-A of H.264, FU of H.265."""
    if codec == "h265":
        head, kind, body = bytes([nal[0] & 0x81 | 49 << 1, nal[1]]), nal[0] >> 1 & 63, nal[2:]
    else:
        head, kind, body = bytes([nal[0] & 0xE0 | 28]), nal[0] & 31, nal[1:]
    step = MTU - len(head) - 1
    for offset in range(0, len(body), step):
        first, last = offset == 0, offset + step >= len(body)
        yield head + bytes([0x80 * first | 0x40 * last | kind]) + body[offset : offset + step]


def _jpeg(data: bytes) -> Iterator[bytes]:
    """A baseline JPEG file with the standard Huffman tables, 4:2:0 or 4:2:2; its tables travel in the first packet."""
    tables: dict[int, bytes] = {}
    kind = width = height = 0
    place = 2
    while data[place + 1] != 0xDA:
        marker, size = data[place + 1], struct.unpack_from(">H", data, place + 2)[0]
        body = data[place + 4 : place + 2 + size]
        if marker == 0xDB:
            for start in range(0, len(body), 65):
                tables[body[start]] = body[start + 1 : start + 65]
        elif marker == 0xC0:
            height, width = struct.unpack_from(">HH", body, 1)
            kind = {0x21: 0, 0x22: 1}[body[7]]
        place += 2 + size
    scan = data[place + 2 + struct.unpack_from(">H", data, place + 2)[0] :].removesuffix(b"\xff\xd9")
    luma = tables[0]
    quantisation = struct.pack(">BBH", 0, 0, 128) + luma + tables.get(1, luma)
    offset = 0
    while offset < len(scan):
        head = struct.pack(">II", offset, kind << 24 | 255 << 16 | width // 8 << 8 | height // 8)
        if offset == 0:
            head += quantisation
        piece = scan[offset : offset + MTU - len(head)]
        yield head + piece
        offset += len(piece)

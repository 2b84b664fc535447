"""JPEG out of RTP payloads: scans get back the headers that RFC 2435 leaves out.

Knows neither sequence numbers nor timestamps.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from .errors import RtpError, RtspError
from .payload import MAX_UNIT, Picture

_LUMA: Final = (
    "16 11 12 14 12 10 16 14 13 14 18 17 16 19 24 40 26 24 22 22 24 49 35 37 29 40 58 51 61 60 57 51"
    " 56 55 64 72 92 78 64 68 87 69 55 56 80 109 81 87 95 98 103 104 103 62 77 113 121 112 100 120 92 101 103 99"
)
_CHROMA: Final = "17 18 18 24 21 24 47 26 26 47 99 66 56 66" + " 99" * 50
_QUALITY_TABLES: Final = tuple(tuple(int(number) for number in text.split()) for text in (_LUMA, _CHROMA))
"""Quantisation for quality 50, luma and chroma, in zigzag order."""

# Tables K.3 to K.6 of the JPEG standard: class and number, how many codes of each length, and what they stand for.
_HUFFMAN: Final = (
    (0x00, "00010501010101010100000000000000", "000102030405060708090a0b"),
    (
        0x10,
        "0002010303020403050504040000017d",
        (
            "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a3435"
            "363738393a434445464748494a535455565758595a636465666768696a737475767778797a838485868788898a92939495969798"
            "999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4"
            "f5f6f7f8f9fa"
        ),
    ),
    (0x01, "00030101010101010101010000000000", "000102030405060708090a0b"),
    (
        0x11,
        "00020102040403040705040400010277",
        (
            "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f11718191a262728292a35"
            "363738393a434445464748494a535455565758595a636465666768696a737475767778797a82838485868788898a9293949596"
            "9798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4"
            "f5f6f7f8f9fa"
        ),
    ),
)


@dataclass(frozen=True)
class _Kind:
    """What all packets of a picture must agree on. Sizes in pixels; interval: of restart markers, 0 without."""

    subsampling: int
    quality: int
    width: int
    height: int
    interval: int


class JpegPayload:
    """RFC 2435, types 0 and 1, with restart markers or without."""

    def __init__(self) -> None:
        self._tables: dict[int, tuple[bytes, ...]] = {}
        """Those that were sent, by quality: later pictures may rely on them."""
        self._clear()

    def _clear(self) -> None:
        self._kind: _Kind | None = None
        self._scan = bytearray()
        self._current: tuple[bytes, ...] = ()
        self._intact = True
        self._gap = False

    @property
    def has_picture(self) -> bool:
        return self._kind is not None or not self._intact

    def damage(self) -> None:
        """What has come so far of a picture is not all of it. Offsets tell whether the next one is whole."""
        if self._kind is not None:
            self._intact = False
        self._gap = True

    def add(self, payload: bytes) -> None:
        try:
            self._add(payload)
        except RtpError:
            self._intact = False
            raise

    def take(self) -> Picture:
        kind, intact = self._kind, self._intact and self._kind is not None
        data, size = b"", None
        if kind is not None:
            data = _headers(kind, self._current) + bytes(self._scan).removesuffix(b"\xff\xd9") + b"\xff\xd9"
            size = kind.width, kind.height
        self._clear()
        return Picture(data, True, intact, size, kind is not None)

    def _add(self, payload: bytes) -> None:
        if len(payload) < 8:
            raise RtpError(f"a payload of JPEG must have 8 bytes, got {len(payload)}")
        offset, (kind, quality, columns, rows) = int.from_bytes(payload[1:4], "big"), payload[4:8]
        at, interval = 8, 0
        if 64 <= kind <= 127:
            interval, at = int.from_bytes(payload[8:10], "big"), 12
        if kind & ~0x40 > 1:
            raise RtspError(f"JPEG must be of type 0, 1, 64 or 65 of RFC 2435, got {kind}")
        if not columns or not rows:
            raise RtspError("JPEG over RTP must be at most 2040x2040; take H.264, or the camera's HTTP address")
        said = _Kind(kind & 1, quality, columns * 8, rows * 8, interval)
        if offset == 0:
            if self._kind is not None:
                self._clear()
                raise RtpError("a JPEG picture begins before the last one has ended")
            self._current, at = self._read_tables(payload, at, quality)
            self._kind = said
        elif said != self._kind or offset != len(self._scan):
            if self._gap or not self._intact:  # the rest of a picture that is damaged anyhow
                self._intact = False
                return
            raise RtpError(f"a piece of JPEG must go on at byte {len(self._scan)}, got {offset}")
        if len(self._scan) + len(payload) > MAX_UNIT:
            raise RtpError(f"a JPEG picture must have at most {MAX_UNIT} bytes")
        self._scan += payload[at:]

    def _read_tables(self, payload: bytes, at: int, quality: int) -> tuple[tuple[bytes, ...], int]:
        """The quantisation tables as they stand in a JPEG file, and where the scan begins."""
        if 1 <= quality <= 99:
            return _scaled_tables(quality), at
        if quality < 128:
            raise RtpError(f"the quality of JPEG must be 1 to 99 or 128 to 255, got {quality}")
        if len(payload) < at + 4:
            raise RtpError("a JPEG picture must begin with its quantisation tables")
        precision, size = payload[at + 1], int.from_bytes(payload[at + 2 : at + 4], "big")
        begin, end = at + 4, at + 4 + size
        if not size:
            if quality == 255 or quality not in self._tables:
                raise RtpError(f"a JPEG picture relies on tables of quality {quality} that were not sent")
            return self._tables[quality], begin
        tables, place = [], begin
        for number in range(2):
            wide = precision >> number & 1
            table = payload[place : place + 64 * (1 + wide)]
            if place < end and len(table) == 64 * (1 + wide) and place + len(table) <= end:
                tables.append(bytes([wide << 4 | number]) + table)
                place += len(table)
        if not tables or end > len(payload):
            raise RtpError(f"the quantisation tables of JPEG must fit their {size} bytes")
        if len(tables) == 1:  # one for both
            tables.append(bytes([tables[0][0] | 1]) + tables[0][1:])
        if quality < 255:
            self._tables[quality] = tuple(tables)
        return tuple(tables), end


def _scaled_tables(quality: int) -> tuple[bytes, ...]:
    """RFC 2435, appendix A."""
    factor = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(
        bytes([number, *(min(max((value * factor + 50) // 100, 1), 255) for value in table)])
        for number, table in enumerate(_QUALITY_TABLES)
    )


def _headers(kind: _Kind, tables: tuple[bytes, ...]) -> bytes:
    """Everything of a JPEG file before its scan; RFC 2435, appendix B."""
    sampling = 0x22 if kind.subsampling else 0x21
    frame = struct.pack(">BHHB", 8, kind.height, kind.width, 3) + bytes([0, sampling, 0, 1, 0x11, 1, 2, 0x11, 1])
    segments = [
        *((0xDB, table) for table in tables),
        *([(0xDD, struct.pack(">H", kind.interval))] if kind.interval else []),
        (0xC0, frame),
        *((0xC4, bytes([name]) + bytes.fromhex(counts + values)) for name, counts, values in _HUFFMAN),
        (0xDA, bytes([3, 0, 0, 1, 0x11, 2, 0x11, 0, 63, 0])),
    ]
    return b"\xff\xd8" + b"".join(struct.pack(">BBH", 0xFF, name, 2 + len(data)) + data for name, data in segments)

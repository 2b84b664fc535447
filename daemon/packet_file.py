"""A file of one encoder's packets, exactly as they were, and a record of what else is known of them.

Knows packets and bytes; nothing of codecs, containers or what the record says.

No container does: NUT has neither times of decoding nor durations, Matroska neither those nor the encoder's time base,
MP4 no side data.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import av
from av.packet import PacketSideData, packet_sidedata_type_from_literal

MAGIC: Final = b"deblurd packets 1\n"
_PACKET: Final = struct.Struct("<BqqqIB")  # flags, pts, dts, duration, size, pieces of side data
_SIDE_DATA: Final = struct.Struct("<BI")  # length of the kind's name, size
_END: Final = struct.Struct("<Q18s")  # where the record begins; MAGIC
_NO_TIME: Final = -(2**63)
_KEY: Final = 1
_BUFFER_BYTES: Final = 1 << 20


class PacketFileWriter:
    """Writes `path` under another name beside it, until `commit`. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._part = path.with_name(path.name + ".part")
        self._file = self._part.open("wb", buffering=_BUFFER_BYTES)
        self._file.write(MAGIC)

    def write(self, packet: av.Packet[Any]) -> None:
        sides = [(data.data_type.encode(), bytes(data)) for data in packet.iter_sidedata()]
        self._file.write(
            _PACKET.pack(
                _KEY if packet.is_keyframe else 0,
                _NO_TIME if packet.pts is None else packet.pts,
                _NO_TIME if packet.dts is None else packet.dts,
                packet.duration or 0,
                packet.size,
                len(sides),
            )
        )
        for kind, data in sides:
            self._file.write(_SIDE_DATA.pack(len(kind), len(data)) + kind + data)
        self._file.write(memoryview(packet))
        self.count += 1

    def commit(self, record: dict[str, Any]) -> None:
        """Add `record`, which JSON must be able to hold, make the file durable, and give it its name."""
        begin = self._file.tell()
        self._file.write(json.dumps(record).encode())
        self._file.write(_END.pack(begin, MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self.path)

    def discard(self) -> None:
        """Leave nothing of what was not committed."""
        with suppress(OSError):  # a full disk: what was not written cannot be flushed either
            self._file.close()
        self._part.unlink(missing_ok=True)


class PacketFile:
    """A committed file. Raises OSError, or ValueError where it is none or damaged."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=_BUFFER_BYTES)
        try:
            self._file.seek(-_END.size, os.SEEK_END)
            self._end, magic = _END.unpack(self._file.read(_END.size))
            self._file.seek(0)
            if magic != MAGIC or self._file.read(len(MAGIC)) != MAGIC:
                raise ValueError(f"{path}: must be a file of packets")
            self._file.seek(self._end)
            self.record: dict[str, Any] = json.loads(self._file.read()[: -_END.size])
        except BaseException:
            self._file.close()
            raise

    def __iter__(self) -> Iterator[av.Packet[Any]]:
        """Every packet; its time base is for the reader to set."""
        self._file.seek(len(MAGIC))
        place = len(MAGIC)
        while place < self._end:
            flags, pts, dts, duration, size, sides = _PACKET.unpack(self._file.read(_PACKET.size))
            side_data = []
            for _ in range(sides):
                length, side_size = _SIDE_DATA.unpack(self._file.read(_SIDE_DATA.size))
                kind = self._file.read(length).decode()
                side_data.append((kind, self._file.read(side_size)))
            packet = cast("av.Packet[Any]", av.Packet(self._file.read(size)))
            packet.pts = None if pts == _NO_TIME else pts
            packet.dts = None if dts == _NO_TIME else dts
            packet.duration = duration
            packet.is_keyframe = bool(flags & _KEY)
            for kind, data in side_data:
                packet.set_sidedata(_side_data(kind, data), move=True)
            place = self._file.tell()
            yield packet

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def is_whole(path: Path) -> bool:
    """Whether there is a committed file of packets."""
    try:
        PacketFile(path).close()
    except (OSError, ValueError):
        return False
    return True


def _side_data(kind: str, data: bytes) -> PacketSideData:
    made: Any = cast(Any, PacketSideData)(packet_sidedata_type_from_literal(cast(Any, kind)), len(data))
    if data:
        made.update(data)
    return cast(PacketSideData, made)

"""RTSP 1.0 as bytes: requests are written; answers, requests of the server and interleaved packets are told apart.

Knows no sockets and no order of messages. Whatever comes in, it keeps no more than one message of limited size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from .errors import RtspError

MAX_HEAD: Final = 64 * 1024
MAX_LINE: Final = 8 * 1024
MAX_HEADERS: Final = 100
MAX_BODY: Final = 256 * 1024

_DOLLAR: Final = ord("$")
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE: Final = re.compile(r"RTSP/1\.\d (\d{3})(?: (.*))?")
_REQUEST_LINE: Final = re.compile(r"([A-Z_]{1,32}) (\S+) RTSP/1\.\d")


@dataclass(frozen=True, slots=True)
class Interleaved:
    """An RTP or RTCP packet that travelled within the connection."""

    channel: int
    payload: bytes


@dataclass(frozen=True)
class Answer:
    """headers: by name in lower case; of one that comes several times, all values in order."""

    status: int
    reason: str
    headers: Mapping[str, tuple[str, ...]]
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        values = self.headers.get(name.lower())
        return values[0] if values else None

    @property
    def cseq(self) -> int | None:
        return _number(self.header("cseq"))


@dataclass(frozen=True)
class ServerRequest:
    """What the server asks of the client."""

    method: str
    cseq: int | None


Message = Interleaved | Answer | ServerRequest


def request(method: str, uri: str, headers: Mapping[str, str]) -> bytes:
    """The bytes of a request without a body."""
    lines = [f"{method} {uri} RTSP/1.0", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError(f"a line of a {method} request must not hold a line break")
    return "\r\n".join(lines).encode()


def refusal(asked: ServerRequest) -> bytes:
    """The answer to a request of the server, which this client serves none of."""
    return f"RTSP/1.0 501 Not Implemented\r\nCSeq: {asked.cseq or 0}\r\n\r\n".encode()


def interleaved(channel: int, payload: bytes) -> bytes:
    """The bytes of a packet that travels within the connection."""
    return b"$" + bytes([channel]) + len(payload).to_bytes(2, "big") + payload


class MessageParser:
    """Cuts a connection's bytes into messages, however they arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # no end of a head begins before this
        self._head: tuple[str, dict[str, tuple[str, ...]], int] | None = None

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take in bytes; yields every message that is complete with them. RtspError for what is no RTSP."""
        self._buffer += data
        while (message := self._next()) is not None:
            yield message

    def _next(self) -> Message | None:
        if self._head is not None:
            return self._with_body()
        self._skip_empty_lines()
        if not self._buffer:
            return None
        return self._interleaved() if self._buffer[0] == _DOLLAR else self._text()

    def _skip_empty_lines(self) -> None:
        if self._buffer.startswith((b"\r", b"\n")):
            self._buffer = self._buffer.lstrip(b"\r\n")
            self._searched = 0

    def _interleaved(self) -> Interleaved | None:
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        end = 4 + int.from_bytes(buffer[2:4], "big")
        if len(buffer) < end:
            return None
        message = Interleaved(buffer[1], bytes(buffer[4:end]))
        del buffer[:end]
        return message

    def _text(self) -> Message | None:
        buffer = self._buffer
        if not chr(buffer[0]).isascii() or not chr(buffer[0]).isupper():
            raise RtspError(f"the server must speak RTSP, got the byte 0x{buffer[0]:02X} where a message begins")
        end = _END_OF_HEAD.search(buffer, max(0, self._searched - 3))
        if end is None:
            self._searched = len(buffer)
            if len(buffer) > MAX_HEAD:
                raise RtspError(f"the head of a message must have at most {MAX_HEAD} bytes")
            return None
        if end.start() > MAX_HEAD:
            raise RtspError(f"the head of a message must have at most {MAX_HEAD} bytes")
        first, *lines = bytes(buffer[: end.start()]).decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
        del buffer[: end.end()]
        self._searched = 0
        headers = _headers(first, lines)
        self._head = (first, headers, _body_size(headers))
        return self._with_body()

    def _with_body(self) -> Message | None:
        assert self._head is not None
        first, headers, size = self._head
        if len(self._buffer) < size:
            return None
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._head = None
        if status := _STATUS_LINE.fullmatch(first):
            return Answer(int(status[1]), (status[2] or "").strip(), headers, body)
        if asked := _REQUEST_LINE.fullmatch(first):
            values = headers.get("cseq", ())
            return ServerRequest(asked[1], _number(values[0] if values else None))
        if first.startswith("HTTP/"):
            raise RtspError("the server must speak RTSP, got an answer in HTTP: is the port right?")
        raise RtspError("the server must speak RTSP, got ", repr(first[:40]))


def _headers(first: str, lines: list[str]) -> dict[str, tuple[str, ...]]:
    if len(lines) > MAX_HEADERS:
        raise RtspError(f"a message must have at most {MAX_HEADERS} headers, got {len(lines)}")
    if any(len(line) > MAX_LINE for line in (first, *lines)):
        raise RtspError(f"a line of a message must have at most {MAX_LINE} letters")
    headers: dict[str, tuple[str, ...]] = {}
    name = ""
    for line in lines:
        if line[:1] in (" ", "\t") and name:  # goes on with the line before
            headers[name] = (*headers[name][:-1], f"{headers[name][-1]} {line.strip()}")
            continue
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if not colon or not name:
            raise RtspError("a header must be written as name: value, got ", repr(line[:40]))
        headers[name] = (*headers.get(name, ()), value.strip())
    return headers


def _body_size(headers: Mapping[str, tuple[str, ...]]) -> int:
    values = headers.get("content-length")
    if not values:
        return 0
    size = _number(values[0])
    if size is None or size > MAX_BODY:
        raise RtspError(f"the Content-Length of a message must be at most {MAX_BODY}, got ", repr(values[0][:40]))
    return size


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,9}", text) else None

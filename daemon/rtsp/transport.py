"""The Transport header: how packets are to travel, and what the server makes of it.

Knows no sockets.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from .errors import RtspError

Transport = Literal["tcp", "udp"]


@dataclass(frozen=True)
class Agreed:
    """channels: of RTP and RTCP within the connection. ports: the server's for them; None where it names none.
    source: the host that packets come from, if it is another one than the server.
    """

    channels: tuple[int, int] = (0, 1)
    ports: tuple[int, int] | None = None
    source: str | None = None


def asked(transport: Transport, port: int = 0) -> str:
    """The header for a SETUP; port: the even one of this end's UDP ports."""
    if transport == "tcp":
        return "RTP/AVP/TCP;unicast;interleaved=0-1"
    return f"RTP/AVP;unicast;client_port={port}-{port + 1}"


def agreed(header: str | None, transport: Transport) -> Agreed:
    """What the server answered. RtspError if it is not what was asked for."""
    if header is None:
        return Agreed()
    profile, *parameters = [part.strip() for part in header.split(";")]
    if ("TCP" in profile.upper()) != (transport == "tcp") or "multicast" in parameters:
        raise RtspError(f"the camera must send over {transport.upper()} as it was asked to, got ", repr(header[:80]))
    values = {name.lower(): value for name, _, value in (parameter.partition("=") for parameter in parameters)}
    channels = _pair(values.get("interleaved"), 255)
    ports = _pair(values.get("server_port"), 65535)
    source = values.get("source", "")
    try:
        ipaddress.ip_address(source)
    except ValueError:
        source = ""
    return Agreed(channels or (0, 1), ports, source or None)


def _pair(text: str | None, most: int) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text or "")
    if match is None:
        return None
    first = int(match[1])
    second = int(match[2]) if match[2] else first + 1
    return (first, second) if first <= most and second <= most else None

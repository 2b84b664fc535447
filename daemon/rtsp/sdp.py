"""SDP: from what a server says of a stream to the track that is watched.

Knows no connection. RFC 4566, and what RFC 2326 C.1 and cameras make of control addresses.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal
from urllib.parse import quote, urlsplit, urlunsplit

from .errors import RtspError

Codec = Literal["h264", "hevc", "mjpeg"]

_CODECS: Final[dict[str, Codec]] = {"H264": "h264", "H265": "hevc", "JPEG": "mjpeg"}
_JPEG: Final = 26  # the one payload type that needs no rtpmap
_STATIC: Final = {"25": "CelB", "28": "nv", "31": "H261", "32": "MPV", "33": "MP2T", "34": "H263"}
_MAX_PARAMETER_SETS: Final = 64 * 1024


@dataclass(frozen=True)
class VideoTrack:
    """The track that is watched.

    control: address to set it up with.
    session: address to play the whole session with.
    clock_rate: of RTP timestamps, in Hz.
    parameter_sets: NAL units without start codes, to put before the first key frame.
    donl: H.265 packets carry decoding order numbers.
    """

    codec: Codec
    payload_type: int
    clock_rate: int
    control: str
    session: str
    parameter_sets: tuple[bytes, ...] = ()
    donl: bool = False


def first_video(body: bytes, base: str) -> VideoTrack:
    """The first video track of a known codec in an SDP.

    base: the address that its control addresses are relative to. Raises RtspError if there is none.
    """
    lines = [line.strip() for line in re.split(r"[\r\n]+", body.decode("utf-8", "replace"))]
    begins = [place for place, line in enumerate(lines) if line.startswith("m=")]
    head = lines[: begins[0]] if begins else lines
    session = _resolved(_attribute(head, "control"), base)
    kinds, codecs = [], []
    for begin, end in pairwise([*begins, len(lines)]):
        media = lines[begin:end]
        words = [*media[0][2:].split(), "", "", ""]
        kind, profile, formats = words[0], words[2], words[3:]
        kinds.append(kind)
        if kind != "video":
            continue
        if "SAVP" in profile:
            codecs.append("encrypted packets (SRTP)")
            continue
        for number in formats:
            name, rate = _coding(media, number)
            if name in _CODECS:
                return _track(media, number, _CODECS[name], rate, session, base)
            if name:
                codecs.append(name)
    if codecs:
        raise RtspError(
            "the video must be H.264, H.265 or JPEG, got ", ", ".join(dict.fromkeys(codecs))[:80], lasting=True
        )
    found = ", ".join(dict.fromkeys(kinds))[:80]
    raise RtspError("the stream must have video, got ", f"only {found}" if found else "no track at all", lasting=True)


def address_of(text: str) -> str | None:
    """An RTSP address as it may stand in a request, without user and password; None if it is no RTSP address."""
    try:
        parts = urlsplit(text.strip())
        host = parts.hostname
    except ValueError:
        return None
    if parts.scheme.lower() not in ("rtsp", "rtsps") or not host:
        return None
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
    return quote(plain, safe="%/:=&?~#+!$,;'@()*[]")


def _track(media: Sequence[str], number: str, codec: Codec, rate: int, session: str, base: str) -> VideoTrack:
    parameters = dict(_format_parameters(media, number))
    if codec == "h264" and parameters.get("packetization-mode") == "2":
        raise RtspError("H.264 must come in packetization mode 0 or 1, got 2 (interleaved)")
    names = {"h264": ["sprop-parameter-sets"], "hevc": ["sprop-vps", "sprop-sps", "sprop-pps"], "mjpeg": []}[codec]
    donl = any(parameters.get(name, "0") != "0" for name in ("sprop-max-don-diff", "sprop-depack-buf-nalus"))
    return VideoTrack(
        codec,
        int(number),
        rate,
        _resolved(_attribute(media, "control"), base),
        session,
        tuple(_parameter_sets(",".join(parameters.get(name, "") for name in names))),
        donl and codec == "hevc",
    )


def _attribute(lines: Sequence[str], name: str) -> str | None:
    start = f"a={name}:"
    return next((line[len(start) :].strip() for line in lines if line.startswith(start)), None)


def _coding(media: Sequence[str], number: str) -> tuple[str, int]:
    """Name of a payload type's codec in upper case, and its clock rate; no name for what is no payload type."""
    if not re.fullmatch(r"[0-9]{1,3}", number) or int(number) > 127:
        return "", 0
    for line in media:
        match = re.match(rf"a=rtpmap:\s*{number}\s+([^\s/]+)/([0-9]{{1,9}})", line)
        if match:
            return match[1].upper(), int(match[2]) or 90_000
    return ("JPEG", 90_000) if int(number) == _JPEG else (_STATIC.get(number, f"payload type {number}"), 90_000)


def _format_parameters(media: Sequence[str], number: str) -> Iterator[tuple[str, str]]:
    for line in media:
        match = re.match(rf"a=fmtp:\s*{number}\s+(.*)", line)
        for item in match[1].split(";") if match else ():
            name, _, value = item.strip().partition("=")
            yield name.strip().lower(), value.strip()


def _parameter_sets(text: str) -> Iterator[bytes]:
    """Those that can be read: cameras write odd things there, and send them again within the stream."""
    for item in text[:_MAX_PARAMETER_SETS].split(","):
        try:
            data = base64.b64decode(item.strip() + "=" * (-len(item.strip()) % 4))
        except (binascii.Error, ValueError):
            continue
        if data:
            yield data


def _resolved(control: str | None, base: str) -> str:
    """A control address in full. Relative ones are appended, as cameras mean it, whether or not base ends in /."""
    if control is None or control in ("", "*"):
        return base
    absolute = address_of(control)
    if absolute is not None:
        return absolute
    separator = "" if base.endswith("/") else "/"
    return quote(f"{base}{separator}{control.lstrip('/')}", safe="%/:=&?~#+!$,;'@()*[]")

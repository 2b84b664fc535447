"""Addresses of sources: which kind a text names, and how to write it down without its secrets.

Knows the grammar of addresses; reaches nothing but the file system, to tell a folder from a file.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal, cast
from urllib.parse import SplitResult, quote, unquote, urlsplit

from .errors import SourceError

Kind = Literal["rtsp", "rtsps", "http", "https", "v4l2", "folder", "file", "test"]

_NETWORK: Final = ("rtsp", "rtsps", "http", "https")
_KINDS: Final = (
    "rtsp://, rtsps://, http://, https://, file://, v4l2:, test:, or the path of a file, folder or /dev/video0"
)

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # two letters at least: C: is a drive
_DEVICE: Final = re.compile(r"/dev/(video\d+|v4l/.+)")
_PATTERN: Final = re.compile(r"(?:(\d+)x(\d+))?(?:@(\d+(?:\.\d+|/\d+)?))?")
_PATTERN_SIZE: Final = (1280, 720)
_PATTERN_RATE: Final = Fraction(25)
_LARGEST_PATTERN: Final = 8192
_FASTEST_PATTERN: Final = 1000

# Some cameras take their login in the path: /user=admin_password=secret_channel=1.sdp
_LOGIN_IN_PATH: Final = re.compile(r"((?:user|pass|pwd|login|auth|token|secret|key)\w*?=)([^/]+)", re.IGNORECASE)
_LOGIN_IN_TEXT: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s'\"]*@")
_QUERY_IN_TEXT: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^?\s'\"]*\?)[^\s'\"]+")
_SHORTEST_SECRET: Final = 3  # to replace shorter ones would spoil every text, and hide nothing


@dataclass(frozen=True)
class Address:
    """Where frames come from. `str()` and `repr()` of it hold no user, password or other secret.

    text: the address without its secrets, in one line.
    url: the real address, for the library that opens it; for files, folders and devices their path.
    host, port: of network sources; the port is None where the address gives none.
    path: of files, folders and devices.
    size, rate: width and height, and frames a second, of a test pattern.
    user, password: percent-decoded; None where the address gives none.
    """

    kind: Kind
    text: str
    url: str = field(repr=False)
    host: str | None = None
    port: int | None = None
    path: Path | None = None
    size: tuple[int, int] = _PATTERN_SIZE
    rate: Fraction = _PATTERN_RATE
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address; SourceError, in one line and without secrets, if it is none."""
        if not text:
            raise SourceError(f"an address must not be empty: {_KINDS}")
        match = _SCHEME.match(text)
        scheme = match[1].lower() if match else ""
        rest = text[match.end() :] if match else text
        if scheme in _NETWORK:
            return _network(cast("Kind", scheme), rest)
        if scheme == "v4l2":
            return _device(rest)
        if scheme == "test":
            return _pattern(rest)
        if scheme == "file":
            return _path(_path_of_url(rest))
        if rest.startswith("//") and scheme:
            raise SourceError(f"{scheme}://…: the kind of source must be known, got {scheme!r}; there are {_KINDS}")
        return _device(text) if _DEVICE.fullmatch(text) else _path(text)

    @property
    def network(self) -> bool:
        return self.kind in _NETWORK

    def __str__(self) -> str:
        return self.text


def redact(text: object, address: Address | None = None) -> str:
    """A text of a foreign library, such as an error, in one line and without the secrets of any url in it.

    address: its user, password and query are removed wherever they stand, percent-encoded or not.
    """
    line = " ".join(str(text).split())
    if address is not None and address.network:
        line = line.replace(address.url, address.text)
        for secret in _secrets(address):
            # A user or password that is part of a longer word is another word, unless it is long.
            pattern = re.escape(secret)
            line = re.sub(pattern if len(secret) > _SHORTEST_SECRET else rf"(?<!\w){pattern}(?!\w)", "***", line)
    line = _LOGIN_IN_TEXT.sub(r"\1", line)
    return _QUERY_IN_TEXT.sub(r"\1…", line)


def _network(kind: Kind, rest: str) -> Address:
    if not rest.startswith("//"):
        raise SourceError(f"{kind}:…: the address must begin with {kind}://")
    # From here on: whatever is wrong may be part of a password.
    shown = _shown(kind, rest)
    if any(not letter.isprintable() or letter.isspace() for letter in rest):
        raise SourceError(f"{shown}: the address must have no spaces or control characters; write a space as %20")
    authority, tail = re.match(r"//([^/?#]*)(.*)", rest).groups()  # type: ignore[union-attr]
    if "@" in tail:
        raise SourceError(f"{shown}: in a user or password, / ? # must be written as %2F %3F %23, and a later @ as %40")
    url = f"{kind}:{rest}"
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise SourceError(f"{shown}: the host must be a name or an address, IPv6 in [brackets]") from None
    port = _port(authority.rpartition("@")[2], shown)
    if not host:
        after = " after the user and password" if "@" in authority else ""
        raise SourceError(f"{shown}: the address must have a host{after}, e.g. {kind}://192.168.1.20/stream")
    user, password = parts.username, parts.password
    return Address(
        kind,
        _without_secrets(parts),
        url,
        host=host,
        port=port,
        user=None if user is None else unquote(user),
        password=None if password is None else unquote(password),
    )


def _port(place: str, shown: str) -> int | None:
    digits = re.fullmatch(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::([^:]*))?", place)
    if digits is None:
        raise SourceError(f"{shown}: the host must be a name or an address, IPv6 in [brackets]")
    if not digits[1]:
        return None
    if not re.fullmatch(r"[0-9]{1,6}", digits[1]):  # not shown: it may be the password of an address that lost its host
        raise SourceError(f"{shown}: the port must be a number from 1 to 65535")
    port = int(digits[1])
    if not 1 <= port <= 65535:
        raise SourceError(f"{shown}: the port must be from 1 to 65535, got {port}")
    return port


def _without_secrets(parts: SplitResult) -> str:
    path = _LOGIN_IN_PATH.sub(r"\1…", parts.path)
    query = re.sub(r"(^|&)([^&=]*=)?[^&]+", r"\1\2…", parts.query)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}{'?' if query else ''}{query}"


def _shown(kind: str, rest: str) -> str:
    """What of an address that may be wrong anywhere is no secret: what stands where the host should."""
    place = rest.rpartition("@")[2].lstrip("/")
    host = re.match(r"\[[^\]]*\]|[^:/?#]*", place)
    return f"{kind}://{_printable(host[0] if host else '')}"


def _secrets(address: Address) -> list[str]:
    """Everything of an address that no text may hold, in all its spellings, longest first."""
    parts = urlsplit(address.url)
    found = [parts.username, parts.password, address.user, address.password, parts.query]
    found += [value for _, _, value in (pair.partition("=") for pair in parts.query.split("&")) if len(value) > 5]
    found += [match[2] for match in _LOGIN_IN_PATH.finditer(parts.path)]
    if address.user is not None:
        login = f"{address.user}:{address.password or ''}".encode()
        found.append(base64.b64encode(login).decode())  # as it stands in an Authorization header
    spellings = {
        spelling for secret in found if secret for spelling in (secret, unquote(secret), quote(secret, safe=""))
    }
    return sorted((each for each in spellings if len(each) >= _SHORTEST_SECRET), key=len, reverse=True)


def _device(rest: str) -> Address:
    device = f"/dev/video{rest}" if re.fullmatch(r"[0-9]{1,4}", rest) else rest
    if not device.startswith("/") or "\0" in device:
        raise SourceError(
            f"v4l2:{_printable(rest)}: a camera must be named by number or path, e.g. v4l2:0 or v4l2:/dev/video0"
        )
    return Address("v4l2", _printable(device), device, path=Path(device))


def _pattern(rest: str) -> Address:
    shown = f"test:{_printable(rest)}"
    match = _PATTERN.fullmatch(rest)
    if match is None:
        raise SourceError(f"{shown}: a test pattern must be written as test:, test:1280x720 or test:1280x720@25")
    width, height, rate_text = match.groups()
    size = (int(width), int(height)) if width else _PATTERN_SIZE
    if not all(1 <= side <= _LARGEST_PATTERN for side in size):
        raise SourceError(f"{shown}: a test pattern must be from 1x1 to {_LARGEST_PATTERN}x{_LARGEST_PATTERN}")
    try:
        rate = Fraction(rate_text) if rate_text else _PATTERN_RATE
    except ZeroDivisionError:
        rate = Fraction(0)
    if not 0 < rate <= _FASTEST_PATTERN:
        raise SourceError(
            f"{shown}: a test pattern must have more than 0 and at most {_FASTEST_PATTERN} frames a second"
        )
    return Address("test", shown, f"test:{rest}", size=size, rate=rate)


def _path_of_url(rest: str) -> str:
    if not rest.startswith("//"):
        return unquote(rest)
    host, slash, path = rest[2:].partition("/")
    if host not in ("", "localhost") or not slash:
        raise SourceError(
            f"file:{_printable(rest)}: must be an absolute path on this host, e.g. file:///data/video.mp4"
        )
    return unquote(slash + path)


def _path(text: str) -> Address:
    if not text or "\0" in text:
        raise SourceError(f"{_printable(text)!r}: must be the path of a file or a folder")
    path = Path(text)
    try:
        kind: Kind = "folder" if path.is_dir() else "file"
    except OSError:  # e.g. a name that is too long
        kind = "file"
    return Address(kind, _printable(text), text, path=path)


def _printable(text: str) -> str:
    """The text in one line: what a terminal would act on is escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)

"""What HTTP gives for a url, from those places only that the first address may lead to.

Knows redirects, logins and hosts; nothing of video.

FFmpeg's own HTTP follows redirects and playlists to every host that this one reaches: to a router's page, or to a
service that trusts its neighbours. Here a stream may lead to its own host and to public ones, as content delivery
networks need, but not to others inside, and from HTTPS never to HTTP. A name is looked up once, and the address that
was checked is the one that is connected to.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar
from typing import Final, cast
from urllib.parse import urlsplit

from .address import Address, redact
from .errors import SourceError
from .http_handlers import Basic, Digest, Http, Https, Redirects
from .network_errors import failure, refused
from .source import LiveOptions
from .tls import distrusted

_LOOKED_AT: Final = 64  # bytes
_FREEZES_LATER_S: Final = 0.5  # than whoever waits says so


@dataclass(frozen=True)
class Look:
    """Where an address leads, without the login, and how what is there begins; the rest of it is still to be read."""

    url: str
    beginning: bytes
    answer: http.client.HTTPResponse


class HttpFiles:
    """Opens urls on behalf of an address. Its login is sent to its own host and port only.

    stopped: once set, whatever is being read ends.
    error: why the last url could not be opened or read to its end, if it could not.
    """

    def __init__(self, address: Address, options: LiveOptions, stopped: threading.Event) -> None:
        self.stopped = stopped
        self.error: SourceError | None = None
        self._address, self.options = address, options
        self._pieces: set[Piece] = set()
        self._own: set[str] = set()
        self._looked: Look | None = None
        parts = urlsplit(address.url)
        self._place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        if address.user is not None:
            passwords.add_password(None, self._place, address.user, address.password or "")
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),  # one would connect where it likes
            Redirects(self),
            Http(self),
            Https(self),
            Basic(passwords),
            Digest(passwords),
            urllib.request.HTTPCookieProcessor(CookieJar()),
        )
        self._opener.addheaders = [("User-Agent", "deblurd"), ("Accept", "*/*")]

    def look(self) -> Look:
        """Ask for the address, follow redirects, and read a little; SourceError if it is not there.

        What is there need not be asked for again: the first to open it reads on.
        """
        parts = urlsplit(self._address.url)
        # By parts from 0 on: the answer tells whether parts of it may be asked for.
        answer = self.open(self._place + (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), 0)
        try:
            self._looked = Look(answer.url, answer.read(_LOOKED_AT), answer)
        except (OSError, http.client.HTTPException) as error:
            answer.close()
            raise self._failure(error) from None
        return self._looked

    def open(self, url: str, begin: int | None = None, end: int | None = None) -> http.client.HTTPResponse:
        """The answer to a request for a url, or for its bytes from `begin` to before `end`; SourceError if refused."""
        request = urllib.request.Request(self.checked(url))  # noqa: S310 - of HTTP, as checked
        if begin is not None or end is not None:
            request.add_header("Range", f"bytes={begin or 0}-{'' if end is None else end - 1}")
        try:
            return cast("http.client.HTTPResponse", self._opener.open(request, timeout=self.options.open_timeout_s))
        except urllib.error.HTTPError as error:
            error.close()
            raise refused(error.code, self._address) from None
        except urllib.error.URLError as error:
            raise self._failure(error.reason) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._failure(error) from None

    def open_for_ffmpeg(self, url: str, _flags: int, options: Mapping[str, str]) -> Piece:
        """As `av.open(io_open=…)` wants it. What is refused is empty: an error here would be printed by PyAV."""
        looked, self._looked = self._looked, None
        begin, end = int(options.get("offset", 0)) or None, int(options.get("end_offset", 0)) or None
        try:
            if looked is not None and looked.url == url and begin is end is None:
                piece = Piece(self, looked.answer, looked)
            else:
                if looked is not None:
                    looked.answer.close()
                piece = Piece(self, self.open(url, begin, end))
        except SourceError as error:
            self.error = error
            piece = Piece(self, None)
        self._pieces.add(piece)
        return piece

    def closed(self, piece: Piece) -> None:
        self._pieces.discard(piece)

    def close(self) -> None:
        """Close what FFmpeg left open."""
        if self._looked is not None:
            self._looked.answer.close()
        for piece in list(self._pieces):
            piece.close()

    def checked(self, url: str) -> str:
        """The url, if what it names may be asked for; SourceError if not. Its host is checked on connecting."""
        scheme = urlsplit(url).scheme
        if scheme.startswith("crypto"):
            raise self._forbidden("names encrypted segments, which are not read; choose a stream without encryption")
        if scheme not in ("http", "https"):
            raise self._forbidden(f"leads to {scheme or 'nothing'}:, but must lead to http: or https: only")
        if scheme == "http" and self._address.kind == "https":
            raise self._forbidden("leads from https: to http:, which everybody could read")
        return url

    def connect(self, host: str, port: int, timeout_s: float | None) -> socket.socket:
        """A connection to a host that the address may lead to."""
        self._own = self._own or {place for _, place in _resolved(str(self._address.host), 0)}
        error: OSError = OSError("the host has no address")
        for family, place in _resolved(host, port):
            if place not in self._own and not _is_public(place):
                raise self._forbidden(f"leads to {host}, a host inside; it may lead to its own and to public hosts")
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.settimeout(timeout_s)
            try:
                connection.connect((place, port))
            except OSError as caught:
                connection.close()
                error = caught
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(max(self.options.open_timeout_s, self.options.timeout_s + _FREEZES_LATER_S))
            return connection
        raise error

    def failed(self, error: Exception) -> None:
        self.error = self._failure(error)

    def _failure(self, error: object) -> SourceError:
        if isinstance(error, SourceError):
            return error
        if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
            return SourceError(f"{self._address}: the server closed the connection")
        if isinstance(error, ssl.SSLCertVerificationError):
            return SourceError(f"{self._address}: {distrusted(error.verify_message)}", lasting=True)
        if isinstance(error, OSError):
            return failure(error, self._address, self.options)
        return SourceError(f"{self._address}: does not speak HTTP ({redact(error, self._address)})")

    def _forbidden(self, why: str) -> SourceError:
        return SourceError(f"{self._address}: {redact(why, self._address)}", lasting=True)


class Piece:
    """What FFmpeg reads of an answer; at the first error it ends, and `HttpFiles.error` says why.

    looked: whose beginning has been read already. If the server gives parts of it, it is read from any place.
    """

    def __init__(self, files: HttpFiles, answer: http.client.HTTPResponse | None, looked: Look | None = None) -> None:
        self._files, self._answer = files, answer
        self._url = looked.url if looked else ""
        self._ahead = looked.beginning if looked else b""
        self._size = _size(answer) if answer and looked else None
        self._left = answer.length if answer else None  # of the answer, after what is `_ahead`
        self._position = self._wanted = 0

    def read(self, size: int) -> bytes:
        try:
            data = self._read(size)
        except (OSError, ValueError, http.client.HTTPException, SourceError) as error:
            self._files.failed(error)
            return b""
        self._position += len(data)
        self._wanted = self._position
        return data

    def _read(self, size: int) -> bytes:
        if self._answer is None or self._files.stopped.is_set():
            return b""
        if self._wanted != self._position:
            self._answer.close()
            self._answer, self._ahead = self._files.open(self._url, self._wanted), b""
            self._position, self._left = self._wanted, self._answer.length
            if self._answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                raise http.client.HTTPException("the server gave parts of the file before, and does so no more")
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        data = self._answer.read1(size)
        if self._left is not None:
            self._left -= len(data)
            if not data and self._left:  # which `read1` takes for the end
                raise http.client.IncompleteRead(b"")
        return data

    def seekable(self) -> bool:
        return self._size is not None

    def seek(self, offset: int, whence: int = 0) -> int:
        assert self._size is not None
        self._wanted = max(0, offset + (0, self._wanted, self._size)[whence])
        return self._wanted

    def tell(self) -> int:
        return self._wanted

    def close(self) -> None:
        self._files.closed(self)
        if self._answer is not None:
            self._answer.close()


def _resolved(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is empty, or too long
        raise socket.gaierror(socket.EAI_NONAME, "no such name") from error
    return [(family, str(place[0])) for family, _, _, _, place in found]


def _size(answer: http.client.HTTPResponse) -> int | None:
    """How many bytes the whole of what was asked for from 0 on has, if the server gives parts of it."""
    known = re.fullmatch(r"bytes 0-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    return int(known[1]) if known and answer.status == http.HTTPStatus.PARTIAL_CONTENT else None


def _is_public(place: str) -> bool:
    address = ipaddress.ip_address(place)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_global and not address.is_multicast

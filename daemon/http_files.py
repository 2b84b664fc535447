"""What HTTP gives for a url, from those places only that the first address may lead to.

Knows redirects, logins and hosts; nothing of video.

FFmpeg's own HTTP follows a playlist to every host that this one reaches: to a router's page, or to a service that
trusts its neighbours. Here a stream may lead to its own host and to public ones, as content delivery networks need,
but not to others inside, and from HTTPS never to HTTP.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar
from typing import Any, Final, cast
from urllib.parse import urlsplit

from .address import Address, redact
from .errors import SourceError
from .network_errors import failure, refused
from .source import LiveOptions

_LOOKED_AT: Final = 64  # bytes


@dataclass(frozen=True)
class Look:
    """Where an address leads, without the login, and how what is there begins."""

    url: str
    beginning: bytes


class HttpFiles:
    """Opens urls on behalf of an address. Its login is sent to its own host and port only.

    stopped: once set, whatever is being read ends.
    error: why the last url could not be opened or read to its end, if it could not.
    """

    def __init__(self, address: Address, options: LiveOptions, stopped: threading.Event) -> None:
        self.stopped = stopped
        self.error: SourceError | None = None
        self._address, self._options = address, options
        self._pieces: set[Piece] = set()
        self._own: set[str] = set()
        parts = urlsplit(address.url)
        self._place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        if address.user is not None:
            passwords.add_password(None, self._place, address.user, address.password or "")
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),  # one would connect where it likes
            _Redirects(self),
            _Http(self),
            _Https(self),
            _Basic(passwords),
            _Digest(passwords),
            urllib.request.HTTPCookieProcessor(CookieJar()),
        )
        self._opener.addheaders = [("User-Agent", "deblurd"), ("Accept", "*/*")]

    def look(self) -> Look:
        """Ask for the address, follow redirects, and read a little; SourceError if it is not there."""
        parts = urlsplit(self._address.url)
        with self.open(self._place + (parts.path or "/") + (f"?{parts.query}" if parts.query else "")) as answer:
            try:
                return Look(answer.url, answer.read(_LOOKED_AT))
            except (OSError, http.client.HTTPException) as error:
                raise self._failure(error) from None

    def with_login(self, url: str) -> str:
        """The url with the login of the address, if it is of its place."""
        login, at, _ = urlsplit(self._address.url).netloc.rpartition("@")
        scheme, _, rest = url.partition("://")
        mine = url == self._place or url.startswith((self._place + "/", self._place + "?"))
        return f"{scheme}://{login}{at}{rest}" if mine else url

    def open(self, url: str, begin: int = 0, end: int | None = None) -> http.client.HTTPResponse:
        """The answer to a request for a url, or for its bytes from `begin` to before `end`; SourceError if refused."""
        request = urllib.request.Request(self.checked(url))  # noqa: S310 - of HTTP, as checked
        if begin or end is not None:
            request.add_header("Range", f"bytes={begin}-{'' if end is None else end - 1}")
        try:
            return cast("http.client.HTTPResponse", self._opener.open(request, timeout=self._options.open_timeout_s))
        except urllib.error.HTTPError as error:
            error.close()
            raise refused(error.code, self._address) from None
        except urllib.error.URLError as error:
            raise self._failure(error.reason) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._failure(error) from None

    def open_for_ffmpeg(self, url: str, _flags: int, options: Mapping[str, str]) -> Piece:
        """As `av.open(io_open=…)` wants it. What is refused is empty: an error here would be printed by PyAV."""
        try:
            end = int(options.get("end_offset", 0)) or None
            piece = Piece(self, self.open(url, int(options.get("offset", 0)), end))
        except SourceError as error:
            self.error = error
            piece = Piece(self, None)
        self._pieces.add(piece)
        return piece

    def closed(self, piece: Piece) -> None:
        self._pieces.discard(piece)

    def close(self) -> None:
        """Close what FFmpeg left open."""
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
            return connection
        raise error

    def failed(self, error: Exception) -> None:
        self.error = self._failure(error)

    def _failure(self, error: object) -> SourceError:
        if isinstance(error, SourceError):
            return error
        if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
            return SourceError(f"{self._address}: the server closed the connection")
        if isinstance(error, OSError):
            return failure(error, self._address, self._options)
        return SourceError(f"{self._address}: does not speak HTTP ({redact(error, self._address)})")

    def _forbidden(self, why: str) -> SourceError:
        return SourceError(f"{self._address}: {redact(why, self._address)}", lasting=True)


class Piece:
    """What FFmpeg reads of an answer; at the first error it ends, and `HttpFiles.error` says why."""

    def __init__(self, files: HttpFiles, answer: http.client.HTTPResponse | None) -> None:
        self._files, self._answer = files, answer

    def read(self, size: int) -> bytes:
        if self._answer is None or self._files.stopped.is_set():
            return b""
        try:
            return self._answer.read1(size)
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._files.failed(error)
            return b""

    def close(self) -> None:
        self._files.closed(self)
        if self._answer is not None:
            self._answer.close()


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, files: HttpFiles) -> None:
        self._files = files

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        try:
            return super().redirect_request(req, fp, code, msg, headers, self._files.checked(newurl))
        except BaseException:
            fp.close()
            raise


class _Basic(urllib.request.HTTPBasicAuthHandler):
    def http_error_401(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        with closing(fp), suppress(ValueError):  # urllib leaves it open; and another scheme is another handler's
            return super().http_error_401(req, fp, code, msg, headers)
        return None


class _Digest(urllib.request.HTTPDigestAuthHandler):
    def http_error_401(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        with closing(fp), suppress(ValueError):
            return super().http_error_401(req, fp, code, msg, headers)
        return None


class _Http(urllib.request.HTTPHandler):
    def __init__(self, files: HttpFiles) -> None:
        super().__init__()
        self._files = files

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        files = self._files

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                self.sock = files.connect(self.host, self.port, self.timeout)

        return self.do_open(Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, files: HttpFiles) -> None:
        super().__init__()
        self._files = files
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False  # cameras sign their own certificates
        self._tls.verify_mode = ssl.CERT_NONE

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        files, tls = self._files, self._tls

        class Connection(http.client.HTTPSConnection):
            def connect(self) -> None:
                bare = files.connect(self.host, self.port, self.timeout)
                try:
                    self.sock = tls.wrap_socket(bare, server_hostname=self.host)
                except BaseException:
                    bare.close()
                    raise

        return self.do_open(Connection, req)


def _resolved(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is empty, or too long
        raise socket.gaierror(socket.EAI_NONAME, "no such name") from error
    return [(family, str(place[0])) for family, _, _, _, place in found]


def _is_public(place: str) -> bool:
    address = ipaddress.ip_address(place)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_global and not address.is_multicast

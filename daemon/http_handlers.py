"""How urllib goes about HTTP here: where it connects, whom it trusts, which redirects it follows.

Knows urllib's ways; what is allowed, `daemon.http_files` says.
"""

from __future__ import annotations

import http.client
import ssl
import urllib.request
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from .tls import client_context

if TYPE_CHECKING:
    from .http_files import HttpFiles


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect if its url may be asked for."""

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


class Basic(urllib.request.HTTPBasicAuthHandler):
    """Closes the answer that asks for a login, which urllib leaves open."""

    def http_error_401(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        with closing(fp), suppress(ValueError):  # another scheme is another handler's
            return super().http_error_401(req, fp, code, msg, headers)
        return None


class Digest(urllib.request.HTTPDigestAuthHandler):
    """As `Basic`."""

    def http_error_401(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        with closing(fp), suppress(ValueError):
            return super().http_error_401(req, fp, code, msg, headers)
        return None


class Http(urllib.request.HTTPHandler):
    """Connects to where `files` allows."""

    def __init__(self, files: HttpFiles) -> None:
        super().__init__()
        self._files = files

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        files = self._files

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                self.sock = files.connect(self.host, self.port, self.timeout)

        return self.do_open(Connection, req)


class Https(urllib.request.HTTPSHandler):
    """Connects to where `files` allows, and there only to whom its options trust."""

    def __init__(self, files: HttpFiles) -> None:
        super().__init__()
        self._files = files
        self._tls: ssl.SSLContext | None = None

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        tls = self._tls = self._tls or client_context(self._files.options)  # takes 20 ms, which HTTP has no need of
        files = self._files

        class Connection(http.client.HTTPSConnection):
            def connect(self) -> None:
                bare = files.connect(self.host, self.port, self.timeout)
                try:
                    self.sock = tls.wrap_socket(bare, server_hostname=self.host)
                except BaseException:
                    bare.close()
                    raise

        return self.do_open(Connection, req, context=tls)  # else it would make one of its own

"""An HTTP server for tests, on 127.0.0.1, that serves what a test gives it and remembers what it was asked for.

Knows no video: bodies are bytes, or pieces that are sent one after another.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import re
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self


@dataclass(frozen=True)
class Answer:
    """What is sent for a path. A body of pieces is sent as they come, and the connection closed at their end."""

    body: bytes | Callable[[], Iterable[bytes]] = b""
    kind: str = "application/octet-stream"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class WebServer:
    """Answers GET by path, without its query; 404 for others. `auth` is user, password and scheme."""

    def __init__(
        self,
        answers: Mapping[str, Answer],
        *,
        auth: tuple[str, str, Literal["basic", "digest"]] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answers = dict(answers)
        self.auth = auth
        self.requests: list[str] = []
        self.logins: list[str] = []  # every Authorization that was sent
        self.closing = threading.Event()
        owner = self

        class Handler(_Handler):
            server_owner = owner

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._scheme = "http"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            self._scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def port(self) -> int:
        return self._server.server_port

    def url(self, path: str, login: str = "") -> str:
        return f"{self._scheme}://{login and login + '@'}127.0.0.1:{self.port}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()  # waits for the threads of its clients


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_owner: WebServer
    timeout = 5

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.server_owner
        owner.requests.append(self.path)
        owner.logins += self.headers.get_all("Authorization", [])
        if owner.auth and not self._allowed(*owner.auth):
            return self._send(Answer(status=401, headers={"WWW-Authenticate": self._challenge(owner.auth[2])}))
        return self._send(owner.answers.get(self.path.partition("?")[0], Answer(status=404)))

    def _send(self, answer: Answer) -> None:
        self.close_connection = True
        body = answer.body if isinstance(answer.body, bytes) else None
        begin, status = 0, answer.status
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if body is not None and asked and status == 200:
            begin, status = int(asked[1]), 206
        try:
            self.send_response(status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Connection", "close")
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if body is not None:
                self.send_header("Content-Length", str(len(body) - begin))
                if status == 206:
                    self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            for piece in [body[begin:]] if body is not None else answer.body():
                self.wfile.write(piece)
                self.wfile.flush()
        except OSError:
            pass  # the client has gone

    def _challenge(self, scheme: str) -> str:
        return 'Basic realm="web"' if scheme == "basic" else 'Digest realm="web", nonce="abc", qop="auth"'

    def _allowed(self, user: str, password: str, scheme: str) -> bool:
        given = self.headers.get("Authorization", "")
        if scheme == "basic":
            return given == "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        parts = dict(re.findall(r'(\w+)="?([^",]+)"?', given))
        secret = _md5(f"{user}:web:{password}")
        asked = _md5(f"GET:{parts.get('uri')}")
        counted = ":".join(parts.get(name, "") for name in ("nonce", "nc", "cnonce", "qop"))
        return parts.get("username") == user and parts.get("response") == _md5(f"{secret}:{counted}:{asked}")


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()

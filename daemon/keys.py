"""CURVE keys: who a program is, and whom it takes for the daemon.

Knows key files, and what ZeroMQ says of a handshake; opens no socket. Needs pyzmq, and nothing else of the project.

A pair is two files in the format of `zmq.auth`: `NAME.key`, which may be given to anybody, and `NAME.key_secret`, which
nobody but its owner may read. A key is 32 bytes, written as 40 characters of Z85.

What the monitor of a client's socket tells when the client is refused (libzmq 4.3.5), and what libzmq does then:

| why | EVENT_HANDSHAKE_FAILED_ | value | then |
| --- | --- | --- | --- |
| its key is not on the list | AUTH | 400 | gives up |
| too many connections | AUTH | 500 | gives up |
| one has keys, the other has none: the client sees it first | PROTOCOL | 0x11000002 | gives up |
| one has keys, the other has none: the daemon sees it first | NO_DETAIL | EPIPE or ECONNRESET | tries again |
| it expects another server's key | NO_DETAIL | EPIPE or ECONNRESET | tries again |
| the other end stays silent for HANDSHAKE_IVL | NO_DETAIL | EAGAIN | tries again |

A socket that gave up never connects again by itself: its `connect` must be called anew.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq
from zmq.auth import load_certificate
from zmq.utils import z85

PUBLIC: Final = ".key"
SECRET: Final = ".key_secret"  # noqa: S105 (the end of a name)

HANDSHAKE_EVENTS: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
"""What to ask the monitor of a client's socket for."""


class KeysError(ValueError):
    """A key file is missing, open to others, or holds no keys. Its text never holds a secret."""


@dataclass(frozen=True)
class Keys:
    """A pair of keys, and the public key of the server that a client wants to reach. All are 40 characters of Z85."""

    public: str
    secret: str = field(repr=False)
    server: str | None = None

    @classmethod
    def load(cls, secret_file: str | Path, server_file: str | Path | None = None) -> Keys:
        """Read `NAME.key_secret`, and for a client the daemon's `NAME.key`.

        KeysError if a file cannot be read or holds no keys, or if others may read the secret.
        """
        path = Path(secret_file)
        public, secret = _read(path, secret=True)
        if secret is None:
            raise KeysError(f"{path}: must hold a secret key, got a public one only; its file ends in {SECRET}")
        if zmq.curve_public(secret.encode()).decode() != public:
            raise KeysError(f"{path}: must hold the two keys of one pair, got a public key of another")
        return cls(public, secret, None if server_file is None else public_key(server_file))

    def serve(self, socket: zmq.Socket[Any]) -> None:
        """Make `socket`, before it is bound, speak to clients with keys alone."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, self.secret)

    def connect(self, socket: zmq.Socket[Any]) -> None:
        """Make `socket`, before it is connected, speak to the server with these keys alone. KeysError if none is
        named.
        """
        if self.server is None:
            raise KeysError(f"a client needs the daemon's public key: Keys.load(secret_file, 'daemon{PUBLIC}')")
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, self.server)
        socket.setsockopt_string(zmq.CURVE_PUBLICKEY, self.public)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, self.secret)


def public_key(path: str | Path) -> str:
    """The public key in a file of either kind. KeysError if there is none."""
    return _read(Path(path), secret=False)[0]


def is_key(text: str) -> bool:
    """`text` is a key in Z85."""
    try:
        return len(text) == 40 and len(z85.decode(text.encode())) == 32
    except (KeyError, struct.error):
        return False


def new_keys(name: Path) -> tuple[Path, Path]:
    """Make a pair of keys: `NAME.key` and `NAME.key_secret`, whose paths are returned, in a folder made if missing.

    KeysError if one of them exists: a key that is replaced shuts out all who knew it.
    """
    if name.is_dir():
        raise KeysError(f"{name}: is a folder; name the keys, too, e.g. {name / 'daemon'}")
    files = public_file, secret_file = Path(f"{name}{PUBLIC}"), Path(f"{name}{SECRET}")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    for path in files:
        if path.exists():
            raise KeysError(f"{path}: exists already, and keys are not replaced")
    try:
        secret_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(secret_file, 0o600, "secret keys: keep this file from everybody", public, secret)
        _write(public_file, 0o644, "public key: give it to those who are to know this program", public)
    except OSError as error:
        raise KeysError(f"{error.filename}: cannot be written ({error.strerror})") from error
    return files


def _write(path: Path, mode: int, what: str, public: str, secret: str | None = None) -> None:
    text = f'# ZeroMQ CURVE, {what}.\n\nmetadata\ncurve\n    public-key = "{public}"\n'
    if secret is not None:
        text += f'    secret-key = "{secret}"\n'
    with open(path, "x", opener=lambda name, flags: os.open(name, flags, mode), encoding="ascii") as file:
        file.write(text)


def _read(path: Path, *, secret: bool) -> tuple[str, str | None]:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise KeysError(f"{path}: must be a file of keys")
        if secret and os.name == "posix" and found.st_mode & 0o077:
            raise KeysError(
                f"{path}: must be closed to others (chmod 600 {path}), got mode {stat.S_IMODE(found.st_mode):04o}"
            )
        keys = [None if key is None else key.decode("ascii") for key in load_certificate(path)]
    except OSError as error:
        raise KeysError(f"{path}: cannot be read ({error.strerror})") from error
    except KeysError:
        raise
    except (ValueError, IndexError) as error:  # no public key, or bytes that are no text
        raise KeysError(f"{path}: must hold CURVE keys, as `deblurd keys new` makes them") from error
    public, hidden = keys
    if public is None or not is_key(public) or (hidden is not None and not is_key(hidden)):
        raise KeysError(f"{path}: must hold keys of 40 characters of Z85, as `deblurd keys new` makes them")
    return public, hidden


class Handshakes:
    """Tells from the monitor events of a client's socket that it is refused, and why.

    Some events are also those of a daemon that ends just now. They count as a refusal when they come twice in a row.
    """

    def __init__(self, keys: Keys | None = None) -> None:
        """`keys`: those of the socket."""
        self._keys = keys
        self._broken_off = 0

    def refusal(self, event: Mapping[str, Any]) -> str | None:
        """One line that says why the other end refuses, or None; `event` is of `zmq.utils.monitor`."""
        kind, value = event["event"], event["value"]
        if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._broken_off = 0
        elif kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return self._not_let_in(value)
        elif kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            if value != zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                return f"the handshake failed (ZeroMQ's error {value:#x}): is it a deblurd?"
            if self._keys is None:
                return "it wants keys, got none: make some with `deblurd keys new`"
            return "it has no keys, got some: connect without them, or give it keys"
        elif kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and value in (errno.EPIPE, errno.ECONNRESET):
            self._broken_off += 1
            if self._broken_off >= 2:
                return self._shut_out()
        return None

    def _not_let_in(self, status: int) -> str:
        if status == 500:
            return "it has as many clients as it takes (publish.max_clients)"
        if self._keys is None:
            return "it lets nobody in without keys"
        return f"the key {self._keys.public} is not among those that it allows"

    def _shut_out(self) -> str:
        if self._keys is None:
            return "it wants keys, got none: make some with `deblurd keys new` (or it is no deblurd)"
        return f"its public key is not {self._keys.server}, or it has no keys (or it is no deblurd)"

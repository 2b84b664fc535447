"""What went wrong with a network stream, and what to do, in one line without secrets.

Knows the errors of FFmpeg, of sockets and of HTTP; opens nothing.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

import av

from .address import Address, redact
from .errors import SourceError
from .media import reason
from .source import LiveOptions

_STATUS_OF: Final = (
    (av.error.HTTPUnauthorizedError, 401),
    (av.error.HTTPForbiddenError, 403),
    (av.error.HTTPNotFoundError, 404),
)


def failure(error: OSError | av.FFmpegError, address: Address, options: LiveOptions) -> SourceError:
    """Raise it `from None`: the text of `error` may hold the password."""
    for kind, status in _STATUS_OF:
        if isinstance(error, kind):
            return refused(status, address)
    if isinstance(error, av.error.HTTPClientError | av.error.HTTPServerError):
        return SourceError(f"{address}: the server refuses ({redact(reason(error), address)})")
    if isinstance(error, av.InvalidDataError):
        return SourceError(
            f"{address}: sends nothing that can be read as video; check the path of the address", lasting=True
        )
    text = _broken(error, address, options)
    if text is None:
        why = reason(error) if isinstance(error, av.FFmpegError) else error.strerror or type(error).__name__
        text = f"cannot be read ({redact(why, address)})"
    return SourceError(f"{address}: {text}")


def refused(status: int, address: Address) -> SourceError:
    """An answer of HTTP or RTSP that is not what was asked for."""
    if status == 401 and address.user is None:
        text = f"asks for a user and password; write {address.kind}://user:password@{address.host}…"
    elif status == 401:
        text = "the camera refuses this user and password"
    elif status == 403:
        text = "forbidden (403): this user may not see the stream, or is locked out for a while"
    elif status == 404:
        text = "there is no such stream (404); check the path of the address"
    else:
        text = f"the server refuses ({status})"
    return SourceError(f"{address}: {text}", lasting=status in (401, 403, 404))


def no_answer(address: Address, options: LiveOptions) -> SourceError:
    return SourceError(
        f"{address}: no answer within {options.open_timeout_s:g} s; check that the camera is on, and the address"
    )


def _broken(error: OSError | av.FFmpegError, address: Address, options: LiveOptions) -> str | None:
    number = error.errno
    if isinstance(error, TimeoutError | av.error.ExitError | av.error.TimeoutError):
        return str(no_answer(address, options)).removeprefix(f"{address}: ")
    if isinstance(error, socket.gaierror) or (number == errno.EIO and not _resolves(address)):
        return f"there is no host named {address.host}; check the address"
    if number == errno.ECONNREFUSED:
        return "connection refused; check that the camera is on, and the port of the address"
    if number == errno.EPROTONOSUPPORT and address.kind == "rtsp":
        return "the camera does not send over TCP; set transport 'udp'"
    if number in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN):
        return "the host cannot be reached; check the address and the network"
    if number in (errno.EIO, errno.ECONNRESET, errno.EPIPE):
        return "the server closed the connection"
    return None


def _resolves(address: Address) -> bool:
    try:
        socket.getaddrinfo(address.host, None)
    except (OSError, UnicodeError):
        return False
    return True

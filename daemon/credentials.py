"""Secrets of addresses, from where they are kept: environment variables and files.

Knows how they are written into an address; what it is the address of, `daemon.address` tells.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import quote

from .errors import ConfigError

_VARIABLE: Final = re.compile(r"\$\{([^}]*)\}")
_LOGIN: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<login>[^/?#@]*)@")
_MOST_BYTES: Final = 4096


def filled(text: str, password_file: str = "") -> str:
    """An address with `${NAME}` replaced by the environment's variables, and with the password from a file.

    What stands for a user or a password is percent-encoded on the way; elsewhere a variable is taken as it is.
    Raises ConfigError, which holds nothing of `text` but names of variables.
    """
    login = _LOGIN.match(_VARIABLE.sub(lambda variable: "$" * len(variable[0]), text))  # a name may hold anything
    end = login.end("login") if login else 0
    filled_text = _expanded(text[:end], encode=True) + _expanded(text[end:])
    return _with_password(filled_text, password_in(password_file)) if password_file else filled_text


def _expanded(text: str, *, encode: bool = False) -> str:
    def value(variable: re.Match[str]) -> str:
        name = variable[1]
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError("names a variable that is none: write ${NAME}, with letters, digits and _")
        found = os.environ.get(name)
        if found is None:
            raise ConfigError(f"needs the environment variable {name}, which is not set")
        return quote(found, safe="") if encode else found

    return _VARIABLE.sub(value, text)


def password_in(path: str) -> str:
    """The one line of a file, whose path may hold `${NAME}` too. Raises ConfigError."""
    try:
        with Path(_expanded(path)).open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})") from error
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    if len(data) > _MOST_BYTES or len(lines) != 1 or not lines[0]:
        raise ConfigError("must hold one line, the password")
    return lines[0]


def _with_password(text: str, password: str) -> str:
    login = _LOGIN.match(text)
    if login is None or not login["login"] or ":" in login["login"]:
        raise ConfigError("needs a source with a user and without a password, e.g. rtsp://user@camera/stream")
    end = login.end("login")
    return f"{text[:end]}:{quote(password, safe='')}{text[end:]}"

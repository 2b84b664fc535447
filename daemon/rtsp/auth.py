"""Basic and Digest authentication: from a challenge, a user and a password to an Authorization header.

Knows no connection and no order of requests. RFC 7616, and RFC 2617 for the many cameras that stayed there.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

_SCHEME: Final = re.compile(r"(?:^|,)\s*(Basic|Digest)(?=\s|,|$)", re.IGNORECASE)
_PARAMETER: Final = re.compile(r'([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_HASHES: Final[Mapping[str, Callable[[bytes], str]]] = {
    "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
}
"""Best first."""


@dataclass(frozen=True)
class Challenge:
    """What a server asks for. parameters: by name in lower case, without quotes; of Basic none is needed."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def nonce(self) -> str:
        return self.parameters.get("nonce", "")

    @property
    def stale(self) -> bool:
        """Only the nonce was too old: user and password were right."""
        return self.parameters.get("stale", "").lower() == "true"

    @property
    def algorithm(self) -> str:
        return self.parameters.get("algorithm", "MD5").upper()


def best_challenge(headers: Sequence[str]) -> Challenge | None:
    """The strongest challenge of all WWW-Authenticate headers that this module can answer."""
    found = [challenge for header in headers for challenge in _challenges(header) if _strength(challenge)]
    return max(found, key=_strength, default=None)


class Login:
    """A user and a password that answer one challenge after the other. `repr()` of it holds neither."""

    def __init__(self, user: str, password: str) -> None:
        self._user, self._password = user, password
        self._challenge: Challenge | None = None
        self._count = 0

    @property
    def challenge(self) -> Challenge | None:
        """What the next Authorization header answers."""
        return self._challenge

    def meet(self, challenge: Challenge) -> None:
        """Answer this challenge from now on."""
        self._challenge, self._count = challenge, 0

    def authorization(self, method: str, uri: str) -> str | None:
        """The Authorization header for a request; None before there was a challenge."""
        challenge = self._challenge
        if challenge is None:
            return None
        if challenge.scheme == "basic":
            return "Basic " + base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
        self._count += 1
        return self._digest(challenge, method, uri, f"{self._count:08x}", secrets.token_hex(8))

    def _digest(self, challenge: Challenge, method: str, uri: str, count: str, cnonce: str) -> str:
        algorithm, asked = challenge.algorithm, challenge.parameters
        name = algorithm.removesuffix("-SESS")
        realm, nonce, with_qop = asked.get("realm", ""), challenge.nonce, "qop" in asked

        def hashed(*parts: str) -> str:
            return _HASHES[name](":".join(parts).encode())

        who = hashed(self._user, realm, self._password)
        if algorithm != name:
            who = hashed(who, nonce, cnonce)
        what = hashed(method, uri)
        response = hashed(who, nonce, count, cnonce, "auth", what) if with_qop else hashed(who, nonce, what)
        fields = {"username": self._user, "realm": realm, "nonce": nonce, "uri": uri, "response": response}
        text = ", ".join(f'{key}="{_escaped(value)}"' for key, value in fields.items())
        if "opaque" in asked:
            text += f', opaque="{_escaped(asked["opaque"])}"'
        if "algorithm" in asked:
            text += f", algorithm={asked['algorithm']}"
        if with_qop or algorithm != name:
            text += f', cnonce="{cnonce}"'
        if with_qop:
            text += f", qop=auth, nc={count}"
        return f"Digest {text}"


def _challenges(header: str) -> list[Challenge]:
    # Quoted texts may hold commas and the names of schemes: blank them for the search of where schemes begin.
    blanked = re.sub(r'"(?:[^"\\]|\\.)*"', lambda quoted: '"' + "_" * (len(quoted[0]) - 2) + '"', header)
    starts = list(_SCHEME.finditer(blanked))
    ends = [*(start.start() for start in starts[1:]), len(header)][: len(starts)]
    return [
        Challenge(start[1].lower(), _parameters(header[start.end() : end]))
        for start, end in zip(starts, ends, strict=True)
    ]


def _parameters(text: str) -> dict[str, str]:
    return {
        match[1].lower(): re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
        for match in _PARAMETER.finditer(text)
    }


def _strength(challenge: Challenge) -> int:
    """0 for what cannot be answered."""
    if challenge.scheme == "basic":
        return 1
    name = challenge.algorithm.removesuffix("-SESS")
    qops = [qop.strip() for qop in challenge.parameters.get("qop", "auth").lower().split(",")]
    if name not in _HASHES or not challenge.nonce or "auth" not in qops:
        return 0
    return 3 if name == "SHA-256" else 2


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')

"""An RTSP session: from an address to a camera that plays, and the packets that it sends.

Knows no frames: it hands over RTP and RTCP packets as they come.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from ..address import Address
from ..errors import SourceError
from ..source import LiveOptions
from ..tls import client_context
from .auth import Login, best_challenge
from .connection import Connection, Sockets, Stop, resolve
from .errors import RtspError
from .messages import Answer, Interleaved, Message, MessageParser, ServerRequest, interleaved, refusal, request
from .sdp import VideoTrack, address_of, first_video
from .transport import Agreed, agreed, asked
from .udp import UdpPair

USER_AGENT: Final = "deblurd"
_DEFAULT_PORTS: Final = {"rtsp": 554, "rtsps": 322}
_REDIRECTS: Final = (301, 302, 303, 307)
_MOST_REDIRECTS: Final = 3
_MOST_TRIES: Final = 3  # to log in: without, with, and with a fresh nonce
_MOST_EARLY: Final = 1000
_SESSION_S: Final = (2, 60, 3600)  # at least, if the server names none, and at most
_PUNCH: Final = (bytes.fromhex("800000000000000000000000"), bytes.fromhex("80c9000100000000"))
"""The least RTP and RTCP packets: they tell a firewall on the way that answers are welcome."""

_LASTING: Final = (401, 403, 404)
_REFUSALS: Final[Mapping[int, str]] = {
    401: "the camera refuses this user and password",
    403: "the camera forbids this user to watch",
    404: "the camera has no stream at this path",
    453: "the camera has no bandwidth left for another client",
    454: "the camera ended the session",
    503: "the camera is busy: it may serve too many clients",
}


@dataclass(frozen=True, slots=True)
class Packet:
    """What came from the camera, RTP or RTCP."""

    kind: Literal["rtp", "rtcp"]
    data: bytes


class RtspClient:
    """Opens a session, keeps it alive and ends it.

    One thread uses it; `stop` lets another one end whatever it waits for, with StoppedError. Everything raises
    RtspError where the session cannot go on, and SourceError if there is no way to check certificates.
    `options.open_timeout_s` counts from the first packet until the camera plays.
    """

    def __init__(self, address: Address, stop: Stop, options: LiveOptions) -> None:
        self._address, self._stop, self._options = address, stop, options
        self._transport, self._timeout_s = options.transport, options.open_timeout_s
        self._until = time.monotonic() + options.open_timeout_s
        self._sockets = Sockets(stop)
        self._connection = Connection(self._sockets)
        self._udp: UdpPair | None = None
        self._login: Login | None = None
        self._logged_in = False
        self._parser = MessageParser()
        self._messages: deque[Message] = deque()
        self._early: deque[Interleaved] = deque(maxlen=_MOST_EARLY)  # packets before the answer to PLAY
        self._cseq = 0
        self._session: str | None = None
        self._session_uri = ""
        self._agreed = Agreed()
        self._alive_method = "OPTIONS"
        self._alive_every_s, self._alive_at = 0.0, 0.0

    def open(self) -> VideoTrack:
        """Connect, and have the first video track played."""
        if self._address.kind == "rtsps" and self._transport == "udp":
            raise RtspError("rtsps must use transport 'tcp': packets over UDP would not be encrypted", lasting=True)
        answer = self._describe()
        base = answer.header("content-base") or answer.header("content-location") or ""
        track = first_video(answer.body, address_of(base) or self._uri)
        self._session_uri = track.session
        self._set_up(track)
        self._punch()
        self._ask("PLAY", track.session, {"Range": "npt=0.000-"})
        self._punch()  # once more: now the camera surely listens
        if self._udp is not None:
            self._udp.watch()
        self._messages.extendleft(reversed(self._early))
        self._alive_at = time.monotonic() + self._alive_every_s
        return track

    def receive(self, until: float) -> Iterator[Packet]:
        """Wait for packets until `until`, and yield those that have come by then."""
        if self._alive_at <= time.monotonic():
            self._send(self._alive_method, self._session_uri)
            self._alive_at = time.monotonic() + self._alive_every_s
        if not self._messages:
            for one in self._sockets.wait(min(until, self._alive_at)):
                if one is self._connection.socket:
                    self._messages.extend(self._parser.feed(self._connection.receive()))
                elif self._udp is not None:
                    kind: Literal["rtp", "rtcp"] = "rtp" if one is self._udp.rtp else "rtcp"
                    for data in self._udp.receive(one, self._senders):
                        yield Packet(kind, data)
        while self._messages:
            message = self._messages.popleft()
            if isinstance(message, Interleaved):
                yield from self._packet(message)
            elif isinstance(message, ServerRequest):
                self._connection.send(refusal(message))
            else:
                self._note_alive(message)

    def report(self, data: bytes) -> None:
        """Send an RTCP packet to the camera, or drop it where the camera has yet to read the last one."""
        if self._udp is not None:
            if self._agreed.ports:
                self._udp.send(self._udp.rtcp, data, (self._peer, self._agreed.ports[1]))
        elif not self._connection.busy:
            self._connection.send(interleaved(self._agreed.channels[1], data))

    def close(self) -> None:
        """End the session without waiting for an answer, and close everything."""
        if self._session is not None:
            with contextlib.suppress(RtspError):  # then it has ended anyway
                self._send("TEARDOWN", self._session_uri)
        self._connection.close()
        if self._udp is not None:
            self._udp.close()
        self._sockets.close()

    def _describe(self) -> Answer:
        """Connect, to where redirects lead, and have the stream described."""
        address = self._address
        for _ in range(_MOST_REDIRECTS + 1):
            self._connect(address)
            options = self._exchange("OPTIONS", self._uri)
            if options.status == 401:  # to try again would only bring a lockout nearer
                self._granted("OPTIONS", options)
            offered = options.header("public") or ""
            self._alive_method = "GET_PARAMETER" if "GET_PARAMETER" in offered else "OPTIONS"
            answer = self._exchange("DESCRIBE", self._uri, {"Accept": "application/sdp"})
            if answer.status not in _REDIRECTS:
                return self._granted("DESCRIBE", answer)
            address = _redirected(address, answer.header("location") or "")
        raise RtspError(f"the server must redirect at most {_MOST_REDIRECTS} times")

    def _connect(self, address: Address) -> None:
        assert address.host is not None
        self._connection.close()
        self._parser, self._logged_in = MessageParser(), False
        self._login = None if address.user is None else Login(address.user, address.password or "")
        self._uri = address_of(address.url) or ""
        port = address.port or _DEFAULT_PORTS[address.kind]
        self._connection.open(resolve(address.host, port, self._stop, self._until), self._until)
        self._peer: str = self._connection.socket.getpeername()[0]
        if address.kind == "rtsps":
            self._connection.secure(address.host, client_context(self._options), self._until)

    def _set_up(self, track: VideoTrack) -> None:
        if self._transport == "udp":
            one = self._connection.socket
            self._udp = UdpPair(one.family, one.getsockname()[0], self._sockets)
        port = self._udp.port if self._udp is not None else 0
        answer = self._ask("SETUP", track.control, {"Transport": asked(self._transport, port)})
        self._agreed = agreed(answer.header("transport"), self._transport)
        self._senders = {self._peer, self._agreed.source or self._peer}
        session, *parameters = [part.strip() for part in (answer.header("session") or "").split(";")]
        self._session = session or None
        least, seconds, most = _SESSION_S
        for name, _, value in (parameter.partition("=") for parameter in parameters):
            if name.strip().lower() == "timeout" and value.strip().isascii() and value.strip().isdigit():
                seconds = int(value.strip()[:6])
        self._alive_every_s = min(max(seconds, least), most) / 2

    def _punch(self) -> None:
        if self._udp is not None and self._agreed.ports:
            for one, data, port in zip((self._udp.rtp, self._udp.rtcp), _PUNCH, self._agreed.ports, strict=True):
                self._udp.send(one, data, (self._peer, port))

    def _packet(self, message: Interleaved) -> Iterator[Packet]:
        if message.channel == self._agreed.channels[0]:
            yield Packet("rtp", message.payload)
        elif message.channel == self._agreed.channels[1]:
            yield Packet("rtcp", message.payload)

    def _ask(self, method: str, uri: str, headers: Mapping[str, str]) -> Answer:
        return self._granted(method, self._exchange(method, uri, headers))

    def _exchange(self, method: str, uri: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request, again with the right login if the server asks for it; whatever it answers then."""
        for _ in range(_MOST_TRIES):
            self._send(method, uri, headers)
            answer = self._answer(method)
            if answer.status != 401:
                self._logged_in = self._login is not None and self._login.challenge is not None
                break
            if not self._meets(answer):
                break
        return answer

    def _send(self, method: str, uri: str, headers: Mapping[str, str] | None = None) -> None:
        self._cseq += 1
        lines = {"CSeq": str(self._cseq), "User-Agent": USER_AGENT, **(headers or {})}
        authorization = self._login.authorization(method, uri) if self._login else None
        if authorization:
            lines["Authorization"] = authorization
        if self._session is not None:
            lines["Session"] = self._session
        self._connection.send(request(method, uri, lines))

    def _answer(self, method: str) -> Answer:
        while True:
            while self._messages:
                message = self._messages.popleft()
                if isinstance(message, Interleaved):
                    self._early.append(message)
                elif isinstance(message, ServerRequest):
                    self._connection.send(refusal(message))
                elif message.cseq in (self._cseq, None):  # some servers leave the number out
                    return message
            if time.monotonic() >= self._until or not self._sockets.wait(self._until):
                raise RtspError(f"the server must answer {method}, and has not within {self._timeout_s:g} s")
            self._messages.extend(self._parser.feed(self._connection.receive()))

    def _meets(self, answer: Answer) -> bool:
        """Whether to try again, with an answer to the challenge in a 401."""
        challenge = best_challenge(answer.headers.get("www-authenticate", ()))
        if self._login is None:
            return False
        if challenge is None:
            raise RtspError("the camera must ask for Basic or Digest authentication, and asks for another or none")
        last = self._login.challenge
        fresh = last is not None and (challenge.stale or self._logged_in) and challenge.nonce != last.nonce
        if last is None or fresh:
            self._login.meet(challenge)
        return last is None or fresh

    def _note_alive(self, answer: Answer) -> None:
        """The answer to a keep-alive."""
        if answer.status == 401 and self._meets(answer):
            self._alive_at = 0.0  # again, at once
        elif answer.status == 454:
            raise RtspError(f"{_REFUSALS[454]} (454)")
        elif answer.status >= 400 and self._alive_method != "OPTIONS":
            self._alive_method, self._alive_at = "OPTIONS", 0.0

    def _granted(self, method: str, answer: Answer) -> Answer:
        status = answer.status
        if 200 <= status < 300:
            return answer
        if status == 401 and self._login is None:
            raise RtspError(
                "the camera asks for a user and password: write them as rtsp://USER:PASSWORD@… (401)", lasting=True
            )
        if status == 461:
            other = "udp" if self._transport == "tcp" else "tcp"
            raise RtspError(
                f"the camera does not send over {self._transport.upper()}: set transport '{other}' (461)", lasting=True
            )
        if status in _REFUSALS:
            raise RtspError(f"{_REFUSALS[status]} ({status})", lasting=status in _LASTING)
        raise RtspError(f"the camera must answer {method} with 200, got ", f"{status} {answer.reason[:80]}".rstrip())


def _redirected(address: Address, location: str) -> Address:
    """Where a server sends its clients. A login goes along only to the same host."""
    try:
        target = Address.parse(location)
    except SourceError:
        raise RtspError("the server must redirect to an address, got none that can be read") from None
    if target.kind != address.kind:
        raise RtspError(f"the server must redirect to {address.kind}://, got ", f"{target.kind} {target.text}")
    same = target.host == address.host
    return replace(target, user=address.user if same else None, password=address.password if same else None)

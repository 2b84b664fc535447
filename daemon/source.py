"""What a source of frames is.

Knows no protocol: each kind of source is a module of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from .frame import Frame


class Source(Protocol):
    """A context manager that yields frames.

    Iteration returns at the end of the stream and raises SourceError when it breaks; what was decoded before
    has been yielded by then. `close` may be called by another thread, and ends the iteration soon.
    """

    @property
    def live(self) -> bool:
        """Frames come whether or not anybody is ready: under overload the newest wins."""

    @property
    def damage(self) -> Sequence[str]:
        """What could not be read so far, one line each; the frames around it have been yielded."""

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


Progress = Literal["connecting", "live", "frozen"]
"""How far an attempt at a live source is: `live` from its first frame on, `frozen` when none came for too long."""


@dataclass(frozen=True)
class LiveOptions:
    """How a live source is read.

    timeout_s: seconds without a frame after which the source counts as frozen.
    open_timeout_s: seconds to connect in.
    transport: how RTP packets travel.
    max_pixels: greatest width times height of a frame.
    deinterlace: whether interlaced frames are made progressive.
    tls_verify: whether the certificate of an encrypted connection must be trusted.
    tls_ca_file: path of the certificates to trust, PEM; empty for those that this host trusts.
    """

    timeout_s: float = 5.0
    open_timeout_s: float = 5.0
    transport: Literal["tcp", "udp"] = "tcp"
    max_pixels: int = 8192 * 8192
    deinterlace: bool = False
    tls_verify: bool = True
    tls_ca_file: str = ""


class LiveSource(Source, Protocol):
    """One attempt at a source that is live.

    Making it touches no network and blocks nowhere; it connects when it is iterated. It breaks with SourceError
    also when the other end closes: a stream has no end of its own. `damage` stays empty, since it might grow for
    months; what is counted instead is in `counters`, by name, e.g. `lost_packets` and `held_frames`.
    """

    @property
    def counters(self) -> Mapping[str, int]: ...

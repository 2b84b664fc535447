"""What a source of frames is.

Knows no protocol: each kind of source is a module of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

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

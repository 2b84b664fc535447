"""What a sink of restored frames is.

Knows no transport: each kind of sink is a module of its own.
"""

from __future__ import annotations

from typing import Protocol

from .frame import Frame, Pixels


class Sink(Protocol):
    """Takes the restored frames of one stream, in order."""

    def lend(self, frame: Frame) -> Pixels:
        """A buffer (H, W, 3) of `frame`'s size and type for the restored pixels, the sink's own again once sent.

        Several may be out at once; they come back in the order in which they were lent. Called by another
        thread than `send`.
        """

    def send(self, frame: Frame) -> None:
        """Deliver a frame; its `pixels` are the buffer that was lent for it. Raises SinkError."""

    def close(self) -> None:
        """Finish what was sent. Called once, also after an error."""

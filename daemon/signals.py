"""What Ctrl-C and SIGTERM do: end the work cleanly, and the next one the process at once.

Knows signals only; what is ended cleans up after itself.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def _on_signals(first: Callable[[int], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM do `first`; the next one ends the process at once."""

    def handle(number: int, _: FrameType | None) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, force)
        first(number)

    def force(number: int, _: FrameType | None) -> None:
        os._exit(128 + number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set."""
    stop = threading.Event()
    with _on_signals(lambda _: stop.set()):
        yield stop


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM break the work off wherever it is; what it has half done is undone."""

    def interrupt(number: int) -> None:
        raise InterruptedBySignal(number)

    try:
        with _on_signals(interrupt):
            yield
    except InterruptedBySignal as error:
        raise SystemExit(128 + error.number) from None


class InterruptedBySignal(BaseException):
    """Not an error: nothing but `interruptible` may catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

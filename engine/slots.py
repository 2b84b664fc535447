"""Slots: a fixed number of places for batches in flight, handed out one at a time.

Knows nothing of what a slot holds; back-ends put their requests, streams or buffers in.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Generic, TypeVar

from .errors import EngineError

T = TypeVar("T")


class Slots(Generic[T]):
    """Free items of a fixed set. `take` waits for one; `close` wakes all waiters and waits for the rest."""

    def __init__(self, items: Sequence[T]) -> None:
        self._free = list(items)
        self._count = len(items)
        self._closed = False
        self._changed = threading.Condition()

    def take(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            if self._closed:
                raise EngineError("the engine is closed")
            return self._free.pop()

    def give(self, item: T) -> None:
        with self._changed:
            self._free.append(item)
            self._changed.notify_all()

    def close(self, timeout_s: float = 10.0) -> None:
        """Refuse further `take`s, and wait until every item is back (at most `timeout_s`)."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == self._count, timeout_s)

"""A bounded hand-off between two threads.

Knows nothing of what is handed over.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

Overflow = Literal["block", "drop_oldest"]


class ClosedError(Exception):
    """The channel was closed."""


class Channel(Generic[T]):
    """Bounded queue with a named overflow policy: `block` waits for room, `drop_oldest` makes it.

    Iterating takes items until the channel is closed and empty. Channels that share a `changed` condition can
    be waited on together: whoever holds it sees them all stand still.
    """

    def __init__(self, capacity: int, overflow: Overflow = "block", changed: threading.Condition | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._overflow = overflow
        self._changed = changed or threading.Condition()
        self._closed = False
        self.drops = 0

    def put(self, item: T) -> None:
        """Hand over `item`; raises ClosedError if the channel is, or becomes so while waiting for room."""
        with self._changed:
            if self._overflow == "drop_oldest":
                if len(self._items) == self._capacity and not self._closed:
                    self._items.popleft()
                    self.drops += 1
            else:
                self._changed.wait_for(lambda: len(self._items) < self._capacity or self._closed)
            if self._closed:
                raise ClosedError
            self._items.append(item)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closed)
                if not self._items:
                    return
                item = self.take()
            yield item

    def take(self) -> T:
        """The oldest item, at once; IndexError when there is none."""
        with self._changed:
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def __len__(self) -> int:
        return len(self._items)

    @property
    def exhausted(self) -> bool:
        """Closed, and nothing left in it."""
        with self._changed:
            return self._closed and not self._items

    def close(self, *, discard: bool = False) -> None:
        """Let no more in; with `discard`, forget what is in it. Wakes everybody; may be called again."""
        with self._changed:
            self._closed = True
            if discard:
                self._items.clear()
            self._changed.notify_all()

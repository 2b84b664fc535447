"""A frame on its way through the engine, and the batches that its tiles share with others.

Knows tickets and results; nothing of streams or scheduling.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue

from engine.protocol import Result, Ticket

from .restorer import Prepared


class Batch:
    """A batch in flight that `users` frames share; its slot is free again when all are done with it."""

    def __init__(self, ticket: Ticket, users: int, on_ready: Callable[[], None], on_done: Callable[[], None]) -> None:
        self._ticket, self._users, self._on_ready, self._on_done = ticket, users, on_ready, on_done
        self._outcome: Result | Exception | None = None
        self._lock = threading.Lock()

    def result(self) -> Result:
        """Wait for the batch; every user gets the same result, or the same error."""
        with self._lock:
            if self._outcome is None:
                try:
                    self._outcome = self._ticket.result()
                except Exception as error:  # noqa: BLE001 - raised again below, to every user
                    self._outcome = error
                self._on_ready()
            if isinstance(self._outcome, Exception):
                raise self._outcome
            return self._outcome

    def done(self) -> None:
        """One user, who has asked for the result, needs it no longer."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            if isinstance(self._outcome, Result):
                self._outcome.release()
        self._on_done()


@dataclass(frozen=True)
class Part:
    """Where some tiles of a frame are: tile `tile + i` is item `item + i` of the batch."""

    submitted_ns: int
    batch: Batch
    item: int
    tile: int
    count: int


class Work:
    """A frame that the engine works on; its parts come as they are submitted."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.complete = False
        """All parts came."""
        self._parts: SimpleQueue[Part | None] = SimpleQueue()

    def give(self, part: Part) -> None:
        self._parts.put(part)

    def no_more_parts(self) -> None:
        """Whatever is missing now will not come."""
        self._parts.put(None)

    def parts(self) -> Iterator[Part]:
        """Every part of the frame as it is submitted; fewer if submitting failed."""
        missing = self.prepared.plan.count
        while missing and (part := self._parts.get()):
            missing -= part.count
            yield part
        self.complete = not missing

"""Buffers for messages, used again when nobody reads them any more: in plain memory, or where other processes see it.

Knows who holds a buffer; nothing of what is in it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from itertools import count

import numpy as np
import zmq
from numpy.typing import NDArray

from .segments import Segments

OVERSTAY_S = 2.0
"""How long a reader may hold a buffer before the pool goes on without it."""
IDLE_S = 5.0
"""How long a buffer that is not needed is kept: fresh memory costs more than the copy into it."""

_tokens = count(secrets.randbelow(1 << 52))
"""Those of an earlier run of the daemon mean nothing to this one."""


class Buffer:
    """Bytes for one message, held by who took it, by ZeroMQ, and by readers in other processes.

    array: uint8 (size,). name: of the file in shared memory, None in plain memory.

    Who takes a buffer calls `done` in the end, and `message` and `lease` before. As long as the message or one of its
    copies is anywhere, or a lease is left, the buffer is not free, and its bytes stay. Threads may share a buffer.
    """

    def __init__(self, array: NDArray[np.uint8], name: str | None = None) -> None:
        self.array, self.name = array, name
        self.taken_s = 0.0
        self._in_hand = True
        self._message: zmq.Frame | None = None
        self._tracker: zmq.MessageTracker | None = None
        self._leases: dict[int, float] = {}  # when each was given
        self._lock = threading.Lock()

    def take(self, now_s: float) -> None:
        self.taken_s, self._tracker, self._in_hand = now_s, None, True

    def message(self) -> zmq.Frame:
        """All bytes as a message, without a copy; the same each time.

        Made when it is needed: to take one back, pyzmq wakes a thread, which costs more than all else.
        """
        with self._lock:
            if self._message is None:
                self._message = zmq.Frame(self.array.data, track=True, copy=False)
                self._tracker = self._message.tracker
            return self._message

    def done(self) -> None:
        """Let go of the buffer."""
        self._message, self._in_hand = None, False

    def lease(self, now_s: float) -> int:
        """Lend the bytes to a reader until `release`."""
        with self._lock:
            token = next(_tokens)
            self._leases[token] = now_s
            return token

    def release(self, token: int) -> None:
        with self._lock:
            self._leases.pop(token, None)

    @property
    def free(self) -> bool:
        # In this order: while somebody has it in hand there may be a message and a lease tomorrow.
        if self._in_hand or (self._tracker is not None and not self._tracker.done):
            return False
        with self._lock:
            return not self._leases

    def overstayed(self, now_s: float) -> bool:
        """A reader has held the buffer for too long."""
        with self._lock:
            return any(now_s - given_s > OVERSTAY_S for given_s in self._leases.values())


class Pool:
    """Buffers of one size at a time; there are never more than are held at once.

    What readers hold for too long, what has another size, and what is not needed any more is retired: the file is
    unlinked and the buffer forgotten, not written to; its memory ends with the last who holds it. Threads may share
    a pool.
    """

    def __init__(self, segments: Segments | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._segments, self._clock = segments, clock
        self._buffers: list[Buffer] = []  # in the order in which they were taken
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._buffers)

    def take(self, size: int, *, shared: bool = False) -> Buffer:
        """A buffer of `size` bytes that nobody reads; with `shared` in shared memory, if there is room."""
        with self._lock:
            now_s = self._clock()
            free = self._tidy(size, now_s)
            buffer = next((each for each in free if (each.name is not None) == shared), None)
            if buffer is None and shared:
                buffer = self._create_shared(size) or next(iter(free), None)
            if buffer is None:
                buffer = Buffer(np.empty(size, np.uint8))
            if buffer in free:
                self._buffers.remove(buffer)
            buffer.take(now_s)
            self._buffers.append(buffer)
            return buffer

    def _create_shared(self, size: int) -> Buffer | None:
        created = self._segments.create(size) if self._segments else None
        if created is None:
            return None
        name, memory = created
        return Buffer(np.frombuffer(memory, np.uint8), name)

    def _tidy(self, size: int, now_s: float) -> list[Buffer]:
        """Retire what is of no more use; the free buffers, the last taken first."""
        free = []
        for buffer in reversed(list(self._buffers)):
            if buffer.overstayed(now_s):
                self._retire(buffer)
            elif buffer.free:
                # What is free is kept for a while only, and the last taken is taken first: so a pool shrinks again.
                if len(buffer.array) == size and now_s - buffer.taken_s <= IDLE_S:
                    free.append(buffer)
                else:
                    self._retire(buffer)
        return free

    def _retire(self, buffer: Buffer) -> None:
        self._buffers.remove(buffer)
        if buffer.name is not None and self._segments is not None:
            self._segments.remove(buffer.name)

    def close(self) -> None:
        """Let go of the buffers that nobody holds; the files of the others stay until their `Segments` ends."""
        with self._lock:
            for buffer in [buffer for buffer in self._buffers if buffer.free]:
                self._retire(buffer)
